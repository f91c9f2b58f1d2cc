"""Training steps on a GPU, as far as a CPU tells: counts, processes, table and goals."""

import json
from dataclasses import replace

import pytest
import torch
from torch._dynamo.callback import callback_handler

from amdim_fast.bench.inputs import MAP_SIDES
from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.recipes import options as recipe_options
from benchmarks import bench_augment, bench_train_step, harness
from benchmarks.augment_providers import ONCE
from benchmarks.gpu import grid, predictions, steps
from benchmarks.report.goals import goal_table
from benchmarks.report.rows import Rows
from benchmarks.report.steps import steps_table

TINY = replace(RECIPES["digits"], ndf=4, n_rkhs=16, depth=1, batch_size=6, precision="float32")
CASE = steps.Case(TINY, side=32, images=60, device="cpu")
EAGER = ("--no-cuda-graph",)


@pytest.mark.parametrize(
    ("recipe", "tera"), [("imagenet128", 66), ("stl10", 24.4), ("cifar10", 10.2)]
)
def test_counted_products_are_those_of_a_measured_step(recipe, tera):
    flops = steps.step_flops(steps.CASES[recipe].recipe)
    assert flops == pytest.approx(tera * 1e12, rel=0.01)


def test_products_of_a_small_step_by_hand():
    """An encoder of 32 px and depth 1; no gradient of the images, else three products a layer."""
    n, wide, d, images = 4, 16, 16, 6
    maps = [30, 30, 30, 14, 14, 7, 7, 5, 5, 3, 3, 1, 1]
    widths = [(27, n), (n, n), (n, n)]
    widths += [(16 * n, 2 * n), (2 * n, 2 * n), (4 * 2 * n, wide), (wide, wide)]
    widths += [(9 * wide, wide), (wide, wide)] * 2 + [(9 * wide, d), (d, d)]
    products = [side**2 * a * b for side, (a, b) in zip(maps, widths, strict=True)]
    heads = sum(side**2 * (2 * wide * d + d * d) for side in MAP_SIDES[1:])
    encoder = 2 * 2 * images * (3 * (sum(products) + heads) - products[0])
    assert steps.step_flops(TINY) == encoder + grid.product_flops(images, d, "forward_backward")


def test_a_wave_measures_what_it_can(tmp_path, capfd):
    out = tmp_path / "rows.jsonl"
    broken = steps.Case(replace(TINY, name="broken"), side=32, images=60, device="nowhere")
    assert steps.run_wave([broken, CASE], steps.ORIGINAL, out, 100.0) == [
        "nowhere-broken original algorithm: exit status 1"
    ]
    assert "nowhere" in capfd.readouterr().err
    rows = {row["metric"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows.keys() == {"rate", "time"}
    assert all(row["case"] == "cpu-digits" and row["n"] >= 3 for row in rows.values())
    assert rows["rate"]["q50"] == pytest.approx(6e3 / rows["time"]["q50"], rel=0.05)


def test_a_wave_without_time_is_ended(tmp_path):
    out = tmp_path / "rows.jsonl"
    assert steps.run_wave([CASE], steps.OURS, out, 0.0) == ["cpu-digits amdim_fast: out of time"]
    assert not out.exists()


def test_waves_are_cut_off_from_the_last(monkeypatch, tmp_path, capsys):
    clock = iter([0.0, 0.0, 60.0, 110.0, 160.0, 175.0])
    given = []

    def run_wave(cases, provider, out, seconds):
        given.append((provider, seconds))
        return [] if provider == steps.OURS else [f"{provider}: out of time"]

    monkeypatch.setattr(steps, "run_wave", run_wave)
    monkeypatch.setattr(steps.time, "monotonic", lambda: next(clock))
    assert steps.measure_all(tmp_path) == 1
    assert [seconds for _, seconds in given] == [70, 70, 65, 15, 0]
    assert [provider for provider, _ in given] == list(steps.PROVIDERS)
    assert [p.endswith("compiled") for p in steps.PROVIDERS] == [False] * 3 + [True] * 2
    graphs = {provider: given["cuda_graph"] for provider, given in steps.PROVIDERS.items()}
    assert graphs == {provider: provider == steps.GRAPH for provider in steps.PROVIDERS}
    assert "not measured: original algorithm, compiled: out of time" in capsys.readouterr().out


def test_quick_waves_are_the_graph_and_the_original(monkeypatch, tmp_path):
    clock = iter([0.0, 0.0, 55.0])
    given = []
    monkeypatch.setattr(steps, "run_wave", lambda cases, *rest: given.append(rest) or [])
    monkeypatch.setattr(steps.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    out = tmp_path / "rows.jsonl"
    assert bench_train_step.main(["--device=cuda", "--quick", f"--out={out}"]) == 0
    assert given == [(steps.GRAPH, out, 70), (steps.ORIGINAL, out, 25)]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("provider", [steps.COMPILED, steps.ORIGINAL_COMPILED])
def test_a_process_compiles_without_the_device(monkeypatch, tmp_path, provider):
    log = []

    class Turn:
        held = False

        def acquire(self):
            assert not self.held
            self.held = True

        def release(self):
            assert self.held
            self.held = False

        __enter__ = acquire

        def __exit__(self, *_):
            self.release()

    class Starter:
        def send(self, _):
            log.append(("ready", turn.held))

        def recv(self):
            log.append(("begun", turn.held))

    def backend(graph, _):
        log.append(("compiled", turn.held))
        return graph

    turn, compile_with = Turn(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(callback_handler, "start_callbacks", [])
    monkeypatch.setattr(callback_handler, "end_callbacks", [])
    monkeypatch.setattr(torch, "compile", lambda call, **more: compile_with(call, backend=backend))
    monkeypatch.setattr(steps, "REPEATS", 2)
    steps._member(CASE, provider, tmp_path / "rows.jsonl", turn, Starter())
    *compiled, ready, begun = log
    assert {*compiled} == {("compiled", False)}
    assert len(compiled) == (1 if provider == steps.COMPILED else 2)
    assert (ready, begun) == (("ready", False), ("begun", False))
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2


def test_the_originals_step_is_the_plain_one(monkeypatch):
    made, seen = [], []
    init = steps.Training.__init__

    def remembered(self, model, *more, **options):
        init(self, model, *more, **options)
        made.append(self)
        model.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].ndim))

    monkeypatch.setattr(steps.Training, "__init__", remembered)
    for provider, calls in ((steps.ORIGINAL, [4, 4]), (steps.OURS, [5])):
        seen.clear()
        steps.make_step(CASE, provider)()
        assert seen == calls * steps.STEPS  # the original encodes one view at a time
    original, ours = made
    assert (original.model.encoder.backend, ours.model.encoder.backend) == ("torch", "auto")
    assert "objective" in vars(original.model.g2l_loss)
    assert "objective" not in vars(ours.model.g2l_loss)


@pytest.mark.parametrize(
    ("device", "options"), [("cpu", [EAGER]), ("cuda", [("--cuda-graph",), EAGER])]
)
def test_seconds_of_the_digits_recipe(monkeypatch, tmp_path, device, options):
    given = []
    monkeypatch.setattr(
        harness, "pretrain", lambda *a, **k: given.append((a, k)) or ([], {"train_seconds": 9.5})
    )
    monkeypatch.setattr(harness, "device_name", lambda device: f"some {device}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    out = tmp_path / "rows.jsonl"
    assert bench_train_step.main(["--run", f"--out={out}", f"--device={device}"]) == 0
    assert given == [(("--no-baselines", *more), {"device": device}) for more in options]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len({row["provider"] for row in rows}) == len(options)
    for row in rows:
        assert (row["case"], row["mode"], row["q50"]) == (f"{device}-digits-run", "run", 9500)
    known = {word.replace("--no-", "--") for words in options for word in words}
    assert known <= {f"--{name.replace('_', '-')}" for name in recipe_options()}


def row(case, provider, metric, unit, value, name="train_step"):
    condition = harness.Condition(name, case, provider, "step", {"B": 480}, "bfloat16")
    return harness.make_row(condition, metric, unit, [value], device="some GPU")


def rows():
    peak = row(grid.peak_key("bfloat16"), "product_peak", "rate", "TFLOP/s", 800.0, name="nce")
    for provider, rate, memory in (
        (steps.OURS, 2400.0, 19e9),
        (steps.COMPILED, 3600.0, 21e9),
        (steps.ORIGINAL, 3900.0, 27e9),
    ):
        yield row("cuda-imagenet128", provider, "rate", "images/s", rate)
        yield row("cuda-imagenet128", provider, "time", "ms", 480e3 / rate)
        yield row("cuda-imagenet128", provider, "peak_memory", "bytes", memory)
    for provider, time in ((steps.GRAPH, 5.5e3), (steps.OURS, 11e3)):
        yield row("cuda-digits-run", provider, "training_time", "ms", time)
    yield peak


def test_table_of_steps():
    """480 images are 66.45 TFLOP; ImageNet is 50 epochs of 2,669 steps."""
    lines = steps_table(Rows(rows())).splitlines()
    assert [line.removeprefix("| imagenet128, ") for line in lines[2:5]] == [
        "amdim_fast | 2,400 images/s | 42 % | 200 ms | 19 GB | 7.41 h |",
        "original algorithm | 3,900 images/s | 67 % | 123 ms | 27 GB | 4.56 h |",
        "amdim_fast, compiled | 3,600 images/s | 62 % | 133 ms | 21 GB | 4.94 h |",
    ]
    assert steps_table(Rows([])) == "Not yet measured."


def test_goals_of_steps_are_judged_by_our_fastest():
    goals = goal_table(Rows(rows()), "step_gpu_goals")
    assert "aim 4,000 | 3,600 images/s, compiled | met |" in goals
    assert "aim 70 % | 62 % | met |" in goals
    assert "aim 18 GB | 21 GB, compiled | met |" in goals
    assert "aim 6 s | 5.5 s, CUDA graph | met, aim too |" in goals
    assert goals.count("not yet measured") == 2
    said = predictions.compared(Rows(rows()))
    assert "| 2,873 images/s | 3,450 images/s | 3,600 images/s, compiled | met |" in said


def test_a_share_of_another_cards_peak_is_not_given():
    made = [r if r["name"] == "train_step" else {**r, "device": "another"} for r in rows()]
    assert "| 3,600 images/s | not yet measured | 133 ms |" in steps_table(Rows(made))


def test_slow_views_are_made_once_and_the_kernel_is_replayed(monkeypatch):
    called = []

    class Graph:
        def replay(self):
            called.append("replayed")

    def call(name):
        return lambda: called.append(name)

    monkeypatch.setattr(bench_augment, "captured", lambda kernel: kernel() or Graph())
    calls = {name: call(name) for name in (bench_augment.OURS, bench_augment.KERNEL, ONCE)}
    samples, _ = bench_augment.sampled(calls, "cpu", 3)
    counts = {name: called.count(name) for name in (*calls, "replayed")}
    assert counts == {
        bench_augment.OURS: 4,
        bench_augment.KERNEL: 1,
        ONCE: 1,
        "replayed": 4,
    }
    assert {name: len(found) for name, found in samples.items()} == {
        bench_augment.OURS: 3,
        ONCE: 1,
        bench_augment.KERNEL: 3,
    }
