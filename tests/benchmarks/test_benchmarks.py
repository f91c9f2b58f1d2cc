import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from amdim_fast.training.recipes import RECIPES
from benchmarks import bench_data, bench_demo, bench_large_batch, harness, report
from benchmarks.bench_nce import CASES, Case, main
from benchmarks.data_table import data_table
from benchmarks.large_table import large_goals
from benchmarks.nce_providers import LOSSES, PRODUCTS, make_inputs, run, run_products
from benchmarks.plot_methods import METHOD_BARS
from benchmarks.rows import LARGE, MISSING, SMALL, Rows, conditions, quantity

README = "# Title\n\n<!-- report:nce_headline -->\n<!-- /report:nce_headline -->\n\nText.\n"
NOTES = "".join(f"<!-- report:{n} -->\n<!-- /report:{n} -->\n" for n in sorted(report.BLOCKS))
TIMES = {
    "reference": 3000.0,
    "reference_compiled": 2500.0,
    "torch": 1000.0,
    "torch_recompute": 1300.0,
}
FIELDS = {
    *("name", "case", "provider", "mode", "shapes", "dtype", "metric", "unit", "q20", "q50", "q80"),
    *("n", "note", "device", "versions", "commit", "source", "time"),
}


def nce_row(provider, mode, metric, unit, value, case=SMALL):
    condition = harness.Condition("nce", case, provider, mode, {"B": 480, "D": 1024}, "float32")
    return harness.make_row(condition, metric, unit, [value], device="some CPU, 2 threads")


def nce_rows():
    for provider, time in TIMES.items():
        yield nce_row(provider, "forward_backward", "time", "ms", time)
        yield nce_row(provider, "forward", "time", "ms", time / 4)
        yield nce_row(provider, "forward_backward", "extra_peak_memory", "bytes", time * 1e6)


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "benchmarks" / "NOTES.md").write_text(NOTES)
    (tmp_path / "docs").mkdir()
    for document in report.DOCUMENTS[2:]:
        (tmp_path / document).write_text(NOTES)
    return tmp_path


@pytest.fixture
def results(tree):
    path = tree / "benchmarks" / "results" / "nce.jsonl"
    for row in nce_rows():
        harness.append_row(row, path)
    return path


def test_committed_documents_agree_with_the_rows():
    assert report.disagreements(report.ROOT) == []


def test_report_writes_what_its_check_accepts(tree, results):
    assert report.main(["--check"], tree) == 1
    assert report.main([], tree) == 0
    assert report.main(["--check"], tree) == 0
    text = (tree / "README.md").read_text()
    assert f"| amdim_fast | 1 s (3x) | 250 ms (3x) | 1 GB (3x) | {MISSING} |" in text
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nText.\n")
    assert (tree / METHOD_BARS.path).read_bytes().startswith(b"\x89PNG")


def test_changed_figure_is_caught(tree, results, capsys):
    report.main([], tree)
    readme = tree / "README.md"
    readme.write_text(readme.read_text().replace("1 s (3x)", "0.9 s (3x)"))
    assert report.main(["--check"], tree) == 1
    assert "README.md disagrees" in capsys.readouterr().out


def test_removed_block_and_unknown_block_are_caught(tree, results, capsys):
    report.main([], tree)
    (tree / "README.md").write_text("<!-- report:other -->\n<!-- /report:other -->\n")
    assert report.main(["--check"], tree) == 1
    printed = capsys.readouterr().out
    assert "no block nce_headline" in printed
    assert "unknown block other" in printed


def test_newer_row_makes_documents_and_plot_stale(tree, results, capsys):
    report.main([], tree)
    newer = nce_row("torch", "forward_backward", "time", "ms", 500.0)
    harness.append_row({**newer, "time": "2999-01-01T00:00:00+00:00"}, results)
    assert report.main(["--check"], tree) == 1
    assert f"{METHOD_BARS.path} was not drawn from the rows" in capsys.readouterr().out
    report.main([], tree)
    assert "500 ms (6x)" in (tree / "README.md").read_text()
    assert report.main(["--check"], tree) == 0


def test_no_table_mixes_two_devices(tree, results):
    other = {**nce_row("torch", "forward", "time", "ms", 9.0), "device": "another CPU"}
    harness.append_row({**other, "time": "2999-01-01T00:00:00+00:00"}, results)
    report.main([], tree)
    text = (tree / "README.md").read_text()
    assert f"| original algorithm | {MISSING} | {MISSING} | {MISSING} | {MISSING} |" in text
    assert "another CPU" in text
    assert "some CPU" not in text


def test_without_rows_nothing_is_measured(tree):
    assert report.main([], tree) == 0
    assert report.main(["--check"], tree) == 0
    text = (tree / "README.md").read_text()
    assert f"| amdim_fast | {MISSING} | {MISSING} | {MISSING} | {MISSING} |" in text
    assert not any(unit in text for unit in (" ms", " GB", " MB"))
    assert not (tree / METHOD_BARS.path).exists()


def test_goals_are_judged_by_the_rows(tree, results):
    harness.append_row(
        nce_row("torch", "forward_backward", "extra_peak_memory", "bytes", 2e9, LARGE), results
    )
    goals = report.nce_goals(report.read_rows(tree))
    verdicts = [line.rsplit("|", 2)[1].strip() for line in goals.splitlines()[2:]]
    assert verdicts == ["met", "met", "not met", "not met"]
    assert "2.31x" in goals


def test_small_table_of_another_bench(tree):
    assert report.main([], tree) == 0
    for metric, unit, value in (("accuracy", "%", 95.25), ("time", "s", 61.0)):
        condition = harness.Condition("demo", "digits", "linear probe", "", {}, "float32")
        row = harness.make_row(condition, metric, unit, [value], device="some CPU")
        harness.append_row(row, tree / "benchmarks" / "results" / "demo.jsonl")
    rendered = report.small_table(report.read_rows(tree), "demo")
    assert "| linear probe | 95.2 % | 61 s |" in rendered


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234.0, "ms", "1.23 s"),
        (0.5, "ms", "0.5 ms"),
        (54.9e9, "bytes", "54.9 GB"),
        (12345, "", "12,345"),
    ],
)
def test_quantity(value, unit, text):
    assert quantity(value, unit) == text


def test_row_has_every_field_and_is_json(tmp_path):
    row = nce_row("torch", "forward", "time", "ms", 1.0)
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

    def measure(call):
        call()
        return float(next(ticks))

    samples = harness.time_interleaved(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")},
        repeats=6,
        warm_ups=1,
        measure=measure,
    )
    assert called == ["a", "b"] * 7
    assert samples["a"] == [1, 3, 5, 7, 9, 11]
    assert harness.quantiles(samples["a"]) == (3, 6, 9)
    assert harness.quantiles([4.0]) == (4, 4, 4)


def test_cpu_stopwatch_is_in_milliseconds(monkeypatch):
    clock = iter([10.0, 10.25])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    assert harness.stopwatch("cpu")(lambda: None) == 250.0


def test_planted_allocation_is_found(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(
        "import torch\n"
        "from benchmarks.harness import Workload\n"
        "def build(size, kept):\n"
        "    def call():\n"
        "        passing = torch.ones(size, dtype=torch.uint8)\n"
        "        del passing\n"
        "        return torch.ones(kept, dtype=torch.uint8)\n"
        "    return Workload(call, lambda: torch.ones(9), kept, lambda: 'noted')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = {"size": 250_000_000, "kept": 50_000_000}
    size, note = harness.extra_peak_in_subprocess("planted:build", arguments)
    assert size == pytest.approx(200_000_000, rel=0.1)
    assert note == "noted"
    with pytest.raises(RuntimeError, match="negative"):
        harness.extra_peak_in_subprocess("planted:build", {"size": -1, "kept": 0})


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


def test_busy_machine_is_named_under_the_table():
    row = {**nce_row("torch", "forward", "time", "ms", 1.0), "note": "BUSY MACHINE: 9 %"}
    assert "BUSY MACHINE: 9 %" in conditions([row])


def test_difference_is_relative_and_nan_is_infinite():
    expected = [torch.tensor([1.0, 100.0]), torch.tensor([1e-3])]
    found = [torch.tensor([1.0, 101.0]), torch.tensor([1e-3])]
    assert harness.largest_difference(found, expected) == pytest.approx(0.01)
    assert harness.largest_difference([torch.tensor(float("nan"))], [torch.tensor(1.0)]) == float(
        "inf"
    )


@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
def test_providers_agree_on_small_inputs(mode):
    inputs = make_inputs(8, 16, "float32", "cpu")
    expected = run("reference", mode, inputs)
    assert len(expected) == (4 if mode == "forward" else 10)
    for provider in ("torch", "torch_recompute"):
        assert harness.largest_difference(run(provider, mode, inputs), expected) < 1e-5
    for provider in PRODUCTS:
        run_products(provider, mode, inputs)


def test_cases_name_known_providers():
    for key, case in CASES.items():
        assert {*case.timed, *case.weighed} <= LOSSES.keys() | PRODUCTS.keys()
        assert key == f"{case.device}-b{case.images}-d{case.width}-{case.dtype}"


def test_wrong_provider_gets_no_row(tmp_path, monkeypatch, capsys):
    def broken(inputs):
        loss_1t5, *rest = LOSSES["reference"](inputs)
        return (loss_1t5 * 1.01, *rest)

    case = Case(
        *("cpu", 8, 16, "float32", ("forward",)),
        timed=("reference", "broken", "torch", "gemms"),
        weighed=(),
        repeats=3,
        warm_ups=1,
        calculate_reference=True,
    )
    monkeypatch.setitem(LOSSES, "broken", broken)
    monkeypatch.setitem(CASES, "small", case)
    out = tmp_path / "rows.jsonl"
    assert main(["--cases", "small", "--out", str(out)]) == 1
    assert "left out, further from the reference than allowed: broken" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["provider"] for row in rows] == ["reference", "torch", "gemms", "reference"]
    assert [row["n"] for row in rows] == [3, 3, 3, 0]
    assert all(row.keys() == FIELDS for row in rows)
    assert rows[-1]["metric"] == "calculated_bytes"


@pytest.fixture
def few_images(monkeypatch):
    for name, value in (("IMAGES", 24), ("SIDE", 32), ("BATCH", 8), ("REPEATS", 3)):
        monkeypatch.setattr(bench_data, name, value)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_data_bench_on_few_images(tmp_path, few_images, tree):
    out = tree / "benchmarks" / "results" / "data.jsonl"
    assert bench_data.main(["--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(row.keys() == FIELDS and row["n"] == 3 and row["q50"] > 0 for row in rows)
    decoded, *stored = data_table(report.read_rows(tree)).splitlines()[2:6]
    assert decoded.startswith(f"| {bench_data.DECODED} |")
    assert decoded.endswith("|  |  |")
    assert all("| 10,000 or more | " in line for line in stored)


def test_store_that_differs_gets_no_row(tmp_path, few_images, monkeypatch):
    monkeypatch.setattr(bench_data.PackedImages, "batch", lambda self, index: torch.zeros(3))
    assert bench_data.main(["--out", str(tmp_path / "rows.jsonl")]) == 1
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(("rate", "verdict"), [(9999.0, "not met"), (10000.0, "met")])
def test_goal_of_the_store(tree, rate, verdict):
    condition = harness.Condition("data", "case", bench_data.STORED, "read", {}, "uint8")
    row = harness.make_row(condition, "rate", "images/s", [rate], device="some CPU")
    harness.append_row(row, tree / "benchmarks" / "results" / "data.jsonl")
    assert f"| {rate:,.0f} images/s | 10,000 or more | {verdict} |" in data_table(
        report.read_rows(tree)
    )


def large_row(case, provider, value):
    condition = harness.Condition("large_batch", case, provider, "step", {}, "float32")
    return harness.make_row(condition, "peak_memory", "bytes", [value], device="some CPU")


@pytest.mark.parametrize(
    ("peaks", "verdicts"),
    [
        ((9e9, 5e9, 3e9, 1.5e9, 1.2e9), ("1.2 GB | met", "5 GB, 3 GB, 1.5 GB, 1.2 GB | met")),
        ((9e9, 5e9, 3e9, 2.1e9, 2.2e9), ("2.1 GB | not met", "2.2 GB | not met")),
    ],
)
def test_goals_of_large_batches(peaks, verdicts):
    assert large_goals(Rows([])).count(MISSING) == 3
    whole, checkpointed, *cached = bench_large_batch.PROVIDERS
    providers = (checkpointed, whole, *cached)
    rows = [large_row("cpu-digits", *pair) for pair in zip(providers, peaks, strict=True)]
    text = large_goals(Rows([*rows, large_row("cpu-loss", "amdim_fast", 0.99e9)]))
    assert "under 1 GB | 990 MB | met" in text
    assert all(verdict in text for verdict in verdicts)
    assert large_goals(Rows(rows[:-1])).count(MISSING) == 3


def test_large_bench_on_few_images(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_large_batch, "PROVIDERS", {"of 5": {"micro_batch": 5}})
    monkeypatch.setattr(bench_large_batch, "CHECKED_IMAGES", 8)
    out = tmp_path / "rows.jsonl"
    assert bench_large_batch.main(["--images=40", "--batch=16", f"--out={out}"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["metric"] for row in rows] == ["extra_peak_memory", "peak_memory", "time"]
    assert all(row.keys() == FIELDS for row in rows)
    assert all(row["q50"] > 0 for row in rows[1:])


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
