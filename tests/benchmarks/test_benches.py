"""Rows, and the benches that make them, on small sizes."""

import itertools
import json
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from amdim_fast.bench import measure
from amdim_fast.bench.inputs import make_inputs
from amdim_fast.training.recipes import RECIPES
from benchmarks import (
    bench_augment,
    bench_data,
    bench_demo,
    bench_large_batch,
    bench_nce,
    bench_train_step,
    harness,
    nce_providers,
)
from benchmarks.bench_nce import CASES, Case
from benchmarks.gpu import grid
from benchmarks.nce_providers import COMPILED, LOSSES, PRODUCTS, extra_peak, run
from benchmarks.report import tables
from benchmarks.report.goals import LARGE, SMALL
from benchmarks.report.rows import read_rows
from tests.threads import torch_threads

FIELDS = {
    *("name", "case", "provider", "mode", "shapes", "dtype", "metric", "unit", "q20", "q50", "q80"),
    *("n", "note", "clock", "beside", "device", "versions", "commit", "source", "time"),
}
ON_CPU = FIELDS | {"instructions"}


def made():
    condition = harness.Condition("nce", SMALL, "torch", "forward", {"B": 480}, "float32")
    return harness.make_row(condition, "time", "ms", [1.0], device="some CPU")


def test_row_has_every_field_and_is_json(tmp_path):
    row = made()
    harness.append_row(row, tmp_path / "rows.jsonl")
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row
    assert row.keys() == FIELDS
    assert row["versions"].keys() == {"torch", "triton", "cuda", "python", "amdim_fast"}
    assert row["time"].endswith("+00:00")


def test_commit_names_a_dirty_tree(tmp_path):
    assert harness.commit(tmp_path) == "unknown"
    identity = ["-c", "user.name=name", "-c", "user.email=name@example.com"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    clean = harness.commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "nce.jsonl").write_text("{}\n")
    assert harness.commit(tmp_path) == clean
    (tmp_path / "new.py").write_text("")
    assert harness.commit(tmp_path) == f"{clean}-dirty"


def test_providers_are_timed_in_turn():
    called = []
    ticks = iter(range(1, 100))

    def clock(call):
        call()
        return float(next(ticks))

    calls = {name: partial(called.append, name) for name in "abc"}
    samples = measure.time_interleaved(calls, repeats=20, warm_ups=1, measure=clock)
    rounds = [called[first : first + 3] for first in range(0, 63, 3)]
    assert rounds[0] == ["a", "b", "c"]
    assert all(sorted(found) == ["a", "b", "c"] for found in rounds)
    timed = called[3:]
    assert samples == {name: [1 + i for i, n in enumerate(timed) if n == name] for name in "abc"}
    # Each goes first, and comes after each of the others, now and then.
    assert {found[0] for found in rounds[1:]} == set("abc")
    assert len(set(itertools.pairwise(timed)) - {(n, n) for n in "abc"}) == 6
    again, called[:] = list(called), []
    measure.time_interleaved(calls, repeats=20, warm_ups=1, measure=lambda call: call() or 0.0)
    assert called == again


def test_quantiles():
    assert measure.quantiles([1.0, 3.0, 5.0, 7.0, 9.0, 11.0]) == (3, 6, 9)
    assert measure.quantiles([4.0]) == (4, 4, 4)


def test_cpu_stopwatch_is_in_milliseconds(monkeypatch):
    clock = iter([10.0, 10.25])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    assert measure.stopwatch("cpu")(lambda: None) == 250.0


def test_other_work_is_what_this_process_did_not_do(monkeypatch):
    seconds = iter([(0.0, 100.0, 5.0), (10.0, 112.0, 9.0)])
    monkeypatch.setattr(harness.OtherWork, "_seconds", lambda self: next(seconds))
    monkeypatch.setattr(harness.os, "cpu_count", lambda: 2)
    assert harness.OtherWork().share() == pytest.approx(0.4)


def test_own_work_is_not_other_work():
    other_work = harness.OtherWork()
    wall, busy, own = other_work._seconds()
    assert wall > 0
    assert busy > own > 0
    code = "import time; start = time.process_time()\nwhile time.process_time() < start + 0.5: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert other_work._seconds()[2] > own + 0.4


def test_difference_is_relative_and_nan_is_infinite():
    expected = [torch.tensor([1.0, 100.0]), torch.tensor([1e-3])]
    found = [torch.tensor([1.0, 101.0]), torch.tensor([1e-3])]
    assert measure.largest_difference(found, expected) == pytest.approx(0.01)
    assert measure.largest_difference([torch.tensor(float("nan"))], [torch.tensor(1.0)]) == float(
        "inf"
    )


@pytest.mark.parametrize(("mode", "each"), [("forward", 1), ("forward_backward", 3)])
@pytest.mark.parametrize("provider", PRODUCTS)
def test_products_are_those_of_all_scores(monkeypatch, provider, mode, each):
    images, width, flops = 6, 8, []
    multiply = PRODUCTS[provider]

    def counted(a, b):
        assert (len(a), len(b)) in {(12, 150), (6, 294), (12, 8), (6, 8), (150, 8), (294, 8)}
        flops.append(2 * a.shape[0] * a.shape[1] * b.shape[0])
        return multiply(a, b)

    monkeypatch.setitem(PRODUCTS, provider, counted)
    assert run(provider, mode, make_inputs(images, width)) == ()
    assert len(flops) == 4 * each
    assert sum(flops) == grid.product_flops(images, width, mode)


def test_workers_of_the_compiler_are_ended():
    from torch._inductor import async_compile

    with async_compile.config.patch(compile_threads=2):
        for _ in range(2):  # a later compilation has new ones
            pool = async_compile.AsyncCompile.process_pool()
            assert pool.process.poll() is None
            harness.timed({"": lambda: None}, warm_ups=0, repeats=1)
            assert pool.process.poll() is not None


def test_compilation_ends_before_the_clock_starts(monkeypatch):
    done = []
    monkeypatch.setattr(harness, "end_compile_workers", lambda: done.append("ended"))
    clock = {"measure": lambda call: done.append("timed") or call() or 1.0}
    samples, _ = harness.timed({"": lambda: done.append("call")}, warm_ups=2, repeats=1, **clock)
    assert done == ["call", "call", "ended", "timed", "call"]
    assert samples == {"": [1.0]}


@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
def test_providers_agree_on_small_inputs(mode):
    inputs = make_inputs(8, 16)
    expected = run("reference", mode, inputs)
    assert len(expected) == (4 if mode == "forward" else 10)
    for provider in ("torch", "torch_objective", "torch_least"):
        assert measure.largest_difference(run(provider, mode, inputs), expected) < 1e-5


def test_the_compiled_reference_is_the_reference_in_one_graph(monkeypatch):
    torch._dynamo.reset()
    traced = torch.compile(nce_providers._reference_objective, backend="eager", fullgraph=True)
    monkeypatch.setitem(LOSSES, COMPILED, traced)
    inputs = make_inputs(4, 8)
    for mode in ("forward", "forward_backward"):
        expected = run("reference", mode, inputs)
        assert measure.largest_difference(run(COMPILED, mode, inputs), expected) < 1e-6


def test_cases_name_known_providers():
    for case in CASES:
        assert {*case.providers} <= LOSSES.keys() | PRODUCTS.keys()
        assert COMPILED in case.providers or case.images == 4096
    on_card = set(tables.ON_CARD.values())
    assert {SMALL, LARGE, *on_card} <= {case.key for case in CASES}


def test_wrong_provider_gets_no_row(tmp_path, monkeypatch, capsys):
    def broken(inputs):
        loss_1t5, *rest = LOSSES["reference"](inputs)
        return (loss_1t5 * 1.01, *rest)

    providers = ("reference", "broken", "torch_objective", "gemms")
    case = Case("cpu", 8, 16, "float32", providers, repeats=3, calculate_reference=True)
    monkeypatch.setitem(LOSSES, "broken", broken)
    monkeypatch.setattr(bench_nce, "CASES", [case])
    out = tmp_path / "rows.jsonl"
    assert bench_nce.main(["--out", str(out)]) == 1
    assert "left out, further from the reference than allowed: broken" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    found = [(row["provider"], row["metric"], row["n"]) for row in rows]
    assert found == [
        ("reference", "value_error", 1),
        ("reference", "gradient_error", 1),
        ("torch_objective", "value_error", 1),
        ("torch_objective", "gradient_error", 1),
        ("reference", "time", 3),
        ("reference", "extra_peak_memory", 1),
        ("torch_objective", "time", 3),
        ("torch_objective", "extra_peak_memory", 1),
        ("gemms", "time", 3),
        ("reference", "calculated_bytes", 0),
    ]
    assert [row["note"] for row in rows if row["note"].startswith("plan: ")] == [
        "plan: one_pass, one_pass, one_pass, one_pass"
    ]
    assert all(row.keys() == ON_CPU for row in rows)
    assert all(row["q50"] > 0 for row in rows)


def test_errors_are_of_each_value_and_gradient(monkeypatch):
    def rounded(inputs):
        values = LOSSES["reference"](inputs)
        return (values[0] * (1 + 2e-5), *values[1:])

    monkeypatch.setitem(LOSSES, "rounded", rounded)
    case, found = Case("cpu", 8, 16, "float32", ("rounded",)), []
    assert not bench_nce.disagreeing(case, lambda *row, **more: found.append((*row, more)))
    (*_, metric, _, worst, said), (*_, of_gradients, _, largest, each) = found
    assert (metric, of_gradients) == ("value_error", "gradient_error")
    assert worst == pytest.approx(2e-5, rel=0.1)
    assert said["note"].startswith("loss_1t5 2.0e-05, loss_1t7 ")
    errors = dict(part.split() for part in each["note"].split(", "))
    assert list(errors) == [
        f"{name}_{view}" for view in ("x1", "x2") for name in ("r1", "r5", "r7")
    ]
    assert largest == pytest.approx(max(map(float, errors.values())), rel=0.05)
    assert not bench_nce.disagreeing(
        replace(case, images=9, checked_images=8), lambda *_, **__: pytest.fail("another B")
    )


def test_a_provider_without_memory_is_left_out(capsys):
    def full():
        raise torch.OutOfMemoryError

    called = []
    calls = {"full": full, "other": lambda: called.append(1)}
    assert bench_nce.fitting(calls, 2) == {"other": calls["other"]}
    assert called == [1, 1]
    assert "full: out of memory" in capsys.readouterr().out


def test_peak_of_a_provider_leaves_out_gradients():
    inputs = make_inputs(16, 8)
    kept, plan = extra_peak("torch", "forward_backward", inputs)
    once, _ = extra_peak("torch_objective", "forward_backward", inputs)
    reference, note = extra_peak("reference", "forward_backward", inputs)
    assert 0 < once < kept < reference
    assert (plan.startswith("plan: keep"), note) == (True, "")
    assert reference > 3 * 4 * 16 * 16 * (25 + 25 + 49)


@pytest.fixture
def few_images(monkeypatch):
    for name, value in (("IMAGES", 24), ("SIDE", 32), ("BATCH", 8), ("REPEATS", 3)):
        monkeypatch.setattr(bench_data, name, value)
    with torch_threads():
        yield


def test_data_bench_on_few_images(tmp_path, few_images):
    out = tmp_path / "benchmarks" / "results" / "data.jsonl"
    assert bench_data.main(["--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(row.keys() == ON_CPU and row["n"] == 3 and row["q50"] > 0 for row in rows)
    decoded, *stored = tables.data(read_rows(tmp_path)).splitlines()[2:6]
    assert decoded.startswith(f"| {bench_data.DECODED} |")
    assert decoded.endswith("|  |  |")
    assert all("| 10,000 or more | " in line for line in stored)


def test_store_that_differs_gets_no_row(tmp_path, few_images, monkeypatch):
    monkeypatch.setattr(bench_data.PackedImages, "batch", lambda self, index: torch.zeros(3))
    assert bench_data.main(["--out", str(tmp_path / "rows.jsonl")]) == 1
    assert not (tmp_path / "rows.jsonl").exists()


def test_large_bench_on_few_images(tmp_path, monkeypatch):
    changes = {"CHECKED_IMAGES": 8, "IMAGES": 40, "BATCH": 16}
    for name, value in {**changes, "PROVIDERS": {"of 5": "--micro-batch=5"}}.items():
        monkeypatch.setattr(bench_large_batch, name, value)
    out = tmp_path / "rows.jsonl"
    assert bench_large_batch.main([f"--out={out}"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["metric"] for row in rows] == ["extra_peak_memory", "peak_memory", "time"]
    assert [row["shapes"]["B"] for row in rows] == [40, 16, 16]
    assert all(row.keys() == ON_CPU for row in rows)
    assert all(row["q50"] > 0 for row in rows)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rows_of_the_demo_say_what_ran(tmp_path, precision):
    recipe = asdict(replace(RECIPES["digits"], precision=precision))
    summary = dict.fromkeys(bench_demo.ACCURACIES.values(), 0.5)
    summary |= {"train_seconds": 2.0, "peak_memory_bytes": 3}
    for name, content in (
        ("summary", summary),
        ("config", {"recipe": recipe, "seed": 0, "device": "cpu"}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    out = tmp_path / "rows.jsonl"
    assert bench_demo.main([str(tmp_path), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["dtype"] for row in rows} == {precision}
    found = {(row["provider"], row["metric"]): row["q50"] for row in rows}
    assert found[bench_demo.PRETRAINED, "linear_probe"] == 50.0
    assert found[bench_demo.PRETRAINED, "training_time"] == 2000.0
    assert len(rows) == 5


def test_step_bench_on_few_steps(tmp_path, monkeypatch):
    for name, value in {"ROUNDS": 1, "STEPS": 6, "RECORD": 1}.items():
        monkeypatch.setattr(bench_train_step, name, value)
    small = ("--ndf=4", "--n-rkhs=16", "--depth=1", "--batch-size=16")
    pretrain = harness.pretrain
    monkeypatch.setattr(
        harness, "pretrain", lambda *flags, **more: pretrain(*flags, *small, **more)
    )
    out = tmp_path / "rows.jsonl"
    assert bench_train_step.main(["--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["provider"], row["metric"]) for row in rows] == [
        ("amdim_fast", "time"),
        ("amdim_fast, float32", "time"),
        ("amdim_fast", "data_and_views"),
    ]
    assert [row["n"] for row in rows] == [3, 3, 4]
    assert 0 < rows[-1]["q50"] < 100


@pytest.mark.parametrize("equal", [True, False])
def test_views_bench_on_few_images(tmp_path, monkeypatch, capsys, equal):
    case = (2, torch.float32, 3, {"digits": 32})
    monkeypatch.setitem(bench_augment.DEVICES, "cpu", case)
    if not equal:
        monkeypatch.setattr(bench_augment.torch, "equal", lambda *_: False)
    out = tmp_path / "rows.jsonl"
    assert bench_augment.main(["--out", str(out)]) == (0 if equal else 1)
    if not equal:
        assert "compiled views differ from the reference's" in capsys.readouterr().out
        assert not out.exists()
        return
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2 * 4
    assert {row["case"] for row in rows} == {"cpu-32px-digits", "cpu-32px-digits-all-cores"}
    assert all(row.keys() == ON_CPU and row["n"] == 3 and row["q50"] > 0 for row in rows)
