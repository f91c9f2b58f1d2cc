"""What of the benches on a GPU can be decided without one: the grid, its table, the search."""

import json
from dataclasses import replace

import pytest
import torch

from amdim_fast.bench.inputs import make_inputs
from amdim_fast.bench.measure import largest_difference, stopwatch
from amdim_fast.training.recipes import RECIPES
from benchmarks import harness
from benchmarks.gpu import grid, large, predictions
from benchmarks.nce_providers import FORWARD, FORWARD_BACKWARD, LOSSES, PEERS, run
from benchmarks.report.goals import GOALS
from benchmarks.report.rows import Rows
from benchmarks.report.tables import nce_grid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("mode", [FORWARD, FORWARD_BACKWARD])
def test_kernels_agree_with_the_reference(mode):
    inputs = make_inputs(5, 16, DEVICE)
    expected = run("reference", mode, inputs)
    for provider in ("triton", "triton_objective", "triton_least"):
        assert largest_difference(run(provider, mode, inputs), expected) < 1e-4


def test_the_grid_has_known_providers_and_every_peer():
    assert {*grid.PROVIDERS} <= LOSSES.keys() | {"gemms"}
    assert {*grid.PROVIDERS} >= {*PEERS, grid.OURS, "triton", "triton_least", "gemms"}
    assert grid.NOT_CAPTURED in PEERS
    assert grid.LIMBS in LOSSES


def recorded_by(found):
    return lambda provider, mode, metric, unit, *samples, **more: found.append(
        (provider, metric, unit, samples, more.get("note", ""))
    )


def test_host_device_and_launches_have_rows(monkeypatch):
    class Graph:
        def replay(self):
            pass

    made = {"ours": Graph, "reference": None, "compiled": None}

    def captured(call):
        if (graph := made[call()]) is None:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        return graph()

    monkeypatch.setattr(grid, "captured", captured)
    monkeypatch.setattr(grid, "launches", lambda graph: 21)
    monkeypatch.setattr(grid, "host_milliseconds", lambda call: 0.25)
    monkeypatch.setattr(harness, "stopwatch", lambda device: lambda call: 0.5)
    monkeypatch.setattr(harness.OtherWork, "note", lambda self: "")
    calls = {name: lambda name=name: name for name in ("reference", "ours", "compiled")}
    found, clocks = [], {}

    def record(provider, mode, metric, unit, *samples, **more):
        recorded_by(found)(provider, mode, metric, unit, *samples, **more)
        clocks.setdefault(metric, set()).add((more.get("clock"), *more.get("beside", ())))

    grid.measure_host_and_device(calls, record)
    assert clocks == {
        "host_time": {("wall", "reference", "ours", "compiled")},
        "device_time": {("device",)},
        "launches": {(None,)},
    }
    host, replays = (0.25,) * grid.HOST_CALLS, (0.5,) * grid.REPLAYS
    assert found == [
        ("reference", "host_time", "ms", host, ""),
        ("ours", "device_time", "ms", replays, ""),
        ("ours", "launches", "", (21.0,), ""),
        ("ours", "host_time", "ms", host, ""),
        ("compiled", "host_time", "ms", host, "no CUDA graph: operation not permitted"),
    ]


def test_a_batch_fits_if_features_gradients_and_scores_do(monkeypatch):
    monkeypatch.setattr(grid, "planned_bytes", lambda images, *_: 1000 * images)
    image = 2 * 2 * 2 * 75 * grid.LARGEST_WIDTH + 1000
    free = int(100 * image / grid.SHARE_TO_FILL) + 100
    assert grid.fits(100, free)
    assert not grid.fits(101, free)


def test_product_flops_count_every_pair():
    images, width = 7, 3
    pairs = 2 * images * images * (25 + 49 + 25)
    assert grid.product_flops(images, width, FORWARD) == 2 * pairs * width
    assert grid.product_flops(images, width, FORWARD_BACKWARD) == 6 * pairs * width


def row(case, provider, mode, metric, unit, value):
    condition = harness.Condition("nce", case, provider, mode, {"B": 1024}, "bfloat16")
    return harness.make_row(condition, metric, unit, [value], device="some GPU")


def test_table_divides_by_the_measured_peak():
    key = grid.grid_key(1024, 2048, "bfloat16")
    seconds = grid.product_flops(1024, 2048, FORWARD_BACKWARD) / 400e12
    rows = [
        row(key, grid.OURS, FORWARD_BACKWARD, "time", "ms", 1e3 * seconds),
        row(key, grid.OURS, FORWARD_BACKWARD, "device_time", "ms", 5.5),
        row(key, grid.OURS, FORWARD_BACKWARD, "launches", "", 21.0),
        row(key, grid.OURS, FORWARD_BACKWARD, "gradient_error", "", 2.5e-3),
        row(grid.peak_key("bfloat16"), "product_peak", "product", "rate", "TFLOP/s", 800.0),
    ]
    text = nce_grid(Rows(rows))
    assert "| amdim_fast, bfloat16 | 1024 | 2048 | not yet measured |" in text
    assert "| 400 | 50% | 5.5 ms |  | 21 |  | 0.0025 |" in text
    assert nce_grid(Rows([])) == "Not yet measured."


def test_largest_batch_is_the_first_that_runs(monkeypatch, tmp_path, capsys):
    ran = []

    def run(provider, mode, inputs):
        ran.append(len(inputs.maps[0]))
        if ran[-1] == 12:
            raise torch.OutOfMemoryError

    for name, value in (("LARGEST", 16), ("BATCH_STEP", 4), ("LARGEST_WIDTH", 8), ("run", run)):
        monkeypatch.setattr(grid, name, value)
    monkeypatch.setattr(grid, "make_inputs", lambda images, width, *_: make_inputs(images, width))
    monkeypatch.setattr(grid, "fits", lambda images, free: (free == 99) & (images < 16))
    monkeypatch.setattr(grid, "stopwatch", lambda device, idle: stopwatch("cpu"))
    monkeypatch.setattr(harness, "device_name", lambda device: "some GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (99, 100))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: ran.append("emptied"))
    assert grid.measure_largest(tmp_path / "rows.jsonl") == 0
    assert ran == [64, 12, "emptied", 8]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["metric"], row["shapes"]["B"]) for row in rows] == [
        ("largest_batch", 8),
        ("time", 8),
    ]
    assert "B = 12: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("time", "images", "said", "verdict"),
    [
        (17_000.0, 65536, "17 s", "met, aim too"),
        (5_000.0, 32768, "20 s, calculated from B = 32,768", "met"),
        (26_000.0, 65536, "26 s", "not met"),
    ],
)
def test_goal_of_the_largest_batch(time, images, said, verdict):
    made = row(grid.LARGEST_CASE, grid.OURS, FORWARD_BACKWARD, "time", "ms", time)
    text = predictions.compared(Rows([{**made, "shapes": {"B": images}}]))
    assert f"| 39.4 s | 19 s | {said} | {verdict} |" in text


def test_goals_on_a_gpu_are_judged_by_rows_of_both():
    key = grid.grid_key(1024, 2048, "bfloat16")
    times = {"reference": 21.0, "reference_compiled": 6.0, grid.OURS: 4.2}
    text = predictions.compared(
        Rows([row(key, *(name, FORWARD_BACKWARD, "time", "ms"), t) for name, t in times.items()])
    )
    assert "| 1.35x or more, aim 1.5x | 0.68x | 1.45x | 1.43x | met |" in text
    assert "| 4.8x or more, aim 5.3x | 2.3x | 5.0x | 5.00x | met |" in text
    assert text.count("not yet measured") == len(predictions.PREDICTED) - 2


def test_share_of_the_peak_is_of_one_card():
    key = grid.grid_key(4096, 2048, "bfloat16")
    flops = grid.product_flops(4096, 2048, FORWARD_BACKWARD)
    time = row(key, "triton_least", FORWARD_BACKWARD, "time", "ms", flops / 480e9)
    memory = [
        row(key, provider, FORWARD_BACKWARD, "extra_peak_memory", "bytes", value)
        for provider, value in (("triton_least", 2e8), ("reference", 5e10))
    ]
    peak = row(grid.peak_key("bfloat16"), "product_peak", "product", "rate", "TFLOP/s", 800.0)
    text = predictions.compared(Rows([time, *memory, peak]))
    assert "| 55 % or more, aim 62 % | 1.8 % | 57 % | 60 % | met |" in text
    assert "| 0.01x or less | 0.001x | 0.004x | 0.004x | met |" in text
    other = predictions.compared(Rows([time, {**peak, "device": "another GPU"}]))
    assert "| 1.8 % | 57 % | not yet measured |  |" in other


def test_every_goal_on_a_gpu_is_predicted():
    on_gpu = [label for goals in GOALS.values() for label in goals if label.startswith("GPU")]
    assert list(predictions.PREDICTED) == on_gpu


@pytest.mark.parametrize("limit", [127, 128, 200, 1000, 4096])
def test_search_ends_within_a_sixteenth_of_what_fits(limit):
    tried = []

    def attempt(images):
        tried.append(images)
        return 1.0 if images <= limit else None

    found = large.search(attempt, 1e6)
    if limit < 128:
        assert found == (large.Found(0, 0.0, "128 did not fit"))
        return
    assert found.images in tried
    assert limit * 15 / 17 <= found.images <= limit
    assert found.note == ""
    assert len(tried) < 12


def test_search_stops_before_an_attempt_that_would_take_too_long():
    now = [0.0]

    def attempt(images):
        now[0] += (images / 128) ** 2
        return 1e3 * (images / 128) ** 2

    found = large.search(attempt, 30.0, lambda: now[0])
    assert found.images == 512
    assert now[0] == 21
    assert "out of time" in found.note


def test_large_step_and_loss_run_on_any_device(monkeypatch):
    recipe = replace(RECIPES["imagenet128"], ndf=2, n_rkhs=16, depth=1)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self.to(DEVICE))
    for provider in large.PROVIDERS:
        training = large.make_training(recipe, provider)
        for measured in (large.step, large.loss_alone):
            assert measured(training, 4, stopwatch("cpu")) > 0
