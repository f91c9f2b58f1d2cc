"""Documents and plots are what the rows say, and goals are judged by them."""

import pytest

from benchmarks import bench_large_batch, harness, report
from benchmarks.report import tables
from benchmarks.report.goals import GOALS, LARGE, SMALL, goal_table, judge
from benchmarks.report.plots import DRAWN
from benchmarks.report.rows import MISSING, Rows, conditions, quantity

README = "# Title\n\n<!-- report:nce_headline -->\n<!-- /report:nce_headline -->\n\nText.\n"
NOTES = "".join(f"<!-- report:{n} -->\n<!-- /report:{n} -->\n" for n in sorted(report.BLOCKS))
METHODS_PLOT = DRAWN["nce_plot"]
TIMES = {
    "reference": 3000.0,
    "reference_compiled": 2500.0,
    "torch_objective": 1000.0,
    "torch": 1000.0,
    "torch_least": 1300.0,
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
    for document in ("benchmarks/NOTES.md", "docs/page.md"):
        (tmp_path / document).parent.mkdir(exist_ok=True)
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
    assert "| amdim_fast | 1 s (3x) | 250 ms (3x) | 1 GB (3x) |" in text
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nText.\n")
    assert (tree / METHODS_PLOT.path).read_bytes().startswith(b"\x89PNG")


def test_changed_figure_is_caught(tree, results, capsys):
    report.main([], tree)
    readme = tree / "README.md"
    readme.write_text(readme.read_text().replace("1 s (3x)", "0.9 s (3x)"))
    assert report.main(["--check"], tree) == 1
    assert "README.md disagrees" in capsys.readouterr().out


def test_removed_block_and_unknown_block_are_caught(tree, results, capsys):
    report.main([], tree)
    (tree / "README.md").write_text("<!-- report:other -->\n<!-- /report:other -->\n")
    for document in ("benchmarks/NOTES.md", "docs/page.md"):
        text = (tree / document).read_text()
        (tree / document).write_text(text.replace("report:nce_headline", "report:nce_goals"))
    assert report.main(["--check"], tree) == 1
    printed = capsys.readouterr().out
    assert "no document has the block nce_headline" in printed
    assert "unknown block other" in printed


def test_newer_row_makes_documents_and_plot_stale(tree, results, capsys):
    report.main([], tree)
    newer = nce_row("torch_objective", "forward_backward", "time", "ms", 500.0)
    harness.append_row({**newer, "time": "2999-01-01T00:00:00+00:00"}, results)
    assert report.main(["--check"], tree) == 1
    assert f"{METHODS_PLOT.path} was not drawn from the rows" in capsys.readouterr().out
    report.main([], tree)
    assert "500 ms (6x)" in (tree / "README.md").read_text()
    assert report.main(["--check"], tree) == 0


def test_no_table_mixes_two_devices(tree, results):
    other = {**nce_row("torch", "forward", "time", "ms", 9.0), "device": "another CPU"}
    harness.append_row({**other, "time": "2999-01-01T00:00:00+00:00"}, results)
    report.main([], tree)
    text = (tree / "README.md").read_text()
    assert f"| original algorithm | {MISSING} | {MISSING} | {MISSING} |" in text
    assert "another CPU" in text
    assert "some CPU" not in text


def test_cases_of_a_bench_on_gpus_are_of_one_card():
    """Those of another card are left aside; cases of CPUs keep a device each."""

    def row(case, device, time):
        named = {"name": "nce", "case": case, "provider": "p", "mode": "m", "metric": "time"}
        return {**named, "device": device, "time": time}

    rows = Rows(
        [
            row("cuda-large", "old card", "2026-01-01"),
            row("cuda-small", "new card", "2026-01-02"),
            row("cpu-large", "old processor", "2026-01-01"),
            row("cpu-small", "new processor", "2026-01-02"),
        ]
    )
    found = {r["case"]: r["device"] for r in rows.named("nce")}
    assert found == {
        "cuda-small": "new card",
        "cpu-large": "old processor",
        "cpu-small": "new processor",
    }


def test_without_rows_nothing_is_measured(tree):
    assert report.main([], tree) == 0
    assert report.main(["--check"], tree) == 0
    text = (tree / "README.md").read_text()
    assert f"| amdim_fast | {MISSING} | {MISSING} | {MISSING} |" in text
    assert not any(unit in text for unit in (" ms", " GB", " MB"))
    assert not (tree / METHODS_PLOT.path).exists()


def test_a_card_has_a_table_of_its_own(tree, results):
    case = "cuda-b256-d1024-bfloat16"
    for provider, time in (("reference", 6.0), ("triton_objective", 2.0)):
        row = nce_row(provider, "forward_backward", "time", "ms", time, case)
        harness.append_row({**row, "device": "some card"}, results)
    rows = report.read_rows(tree)
    on_card, on_cpu = (report.BLOCKS[b](rows) for b in ("nce_headline_gpu", "nce_headline"))
    assert "| amdim_fast | 2 ms (3x) |" in on_card
    assert "some card" in on_card
    assert "some CPU" not in on_card
    assert "some card" not in on_cpu


def on_cpu(instructions, day, factor):
    """Rows of one kind of CPU, whose original takes longer by a factor."""
    for row in nce_rows():
        slower = factor if row["provider"] == "reference" else 1.0
        more = {"device": "AMD EPYC, 2 threads", "instructions": instructions, "time": day}
        yield {**row, **more, "q50": row["q50"] * slower}


def test_each_kind_of_cpu_has_its_own_rows():
    """The same name of a device with two instruction sets is two CPUs; tables show the newer."""
    rows = Rows([*on_cpu("AVX2", "2026-01-02", 0.5), *on_cpu("AVX512", "2026-01-01", 1.0)])
    said = tables.nce_on_cpu(rows)
    assert "CPU, AMD AVX2: original algorithm 1.5 s and 1.5 GB," in said
    assert "CPU, AMD AVX512: original algorithm 3 s and 3 GB," in said
    assert f"CPU, Intel AVX512: {MISSING}." in said
    shown = report.BLOCKS["nce_headline"](rows)
    assert "| amdim_fast | 1 s (1.5x) |" in shown
    assert "AVX512" not in shown


def test_goals_are_judged_by_the_rows():
    memory = "forward_backward", "extra_peak_memory", "bytes"
    large = nce_row("torch_objective", *memory, 2e9, LARGE)
    goals = goal_table(
        Rows([large, *on_cpu("AVX2", "2026-01-02", 0.5), *on_cpu("AVX512", "2026-01-01", 1.0)]),
        "nce_goals",
    )
    verdicts = [line.rsplit("|", 2)[1].strip() for line in goals.splitlines()[2:11]]
    idle = ["not met", "met, aim too", ""]
    assert verdicts == [*idle, *["", "", ""], "not met", "not met", "not met"]
    assert "3.00x" in goals


def test_small_table_of_another_bench(tree):
    assert report.main([], tree) == 0
    for metric, unit, value in (("accuracy", "%", 95.25), ("time", "s", 61.0)):
        condition = harness.Condition("demo", "digits", "linear probe", "", {}, "float32")
        row = harness.make_row(condition, metric, unit, [value], device="some CPU")
        harness.append_row(row, tree / "benchmarks" / "results" / "demo.jsonl")
    rendered = tables.small(report.read_rows(tree), "demo")
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


def test_busy_machine_is_named_under_the_table():
    row = {**nce_row("torch", "forward", "time", "ms", 1.0), "note": "BUSY MACHINE: 9 %"}
    assert "BUSY MACHINE: 9 %" in conditions([row])


@pytest.mark.parametrize(("rate", "verdict"), [(9999.0, "not met"), (10000.0, "met")])
def test_goal_of_the_store(tree, rate, verdict):
    condition = harness.Condition("data", "case", "packed store", "read", {}, "uint8")
    row = harness.make_row(condition, "rate", "images/s", [rate], device="some CPU")
    harness.append_row(row, tree / "benchmarks" / "results" / "data.jsonl")
    assert f"| {rate:,.0f} images/s | 10,000 or more | {verdict} |" in tables.data(
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
    assert goal_table(Rows([]), "large_goals").count(MISSING) == 3
    whole, checkpointed, *cached = bench_large_batch.PROVIDERS
    providers = (checkpointed, whole, *cached)
    rows = [large_row("cpu-digits", *pair) for pair in zip(providers, peaks, strict=True)]
    loss = {**large_row("cpu-loss", "amdim_fast", 0.99e9), "metric": "extra_peak_memory"}
    text = goal_table(Rows([*rows, loss]), "large_goals")
    assert "under 1 GB | 990 MB | met" in text
    assert all(verdict in text for verdict in verdicts)
    assert goal_table(Rows(rows[:-1]), "large_goals").count(MISSING) == 3


def test_every_goal_is_missing_without_rows_and_every_block_renders():
    for name, block in report.BLOCKS.items():
        assert block(Rows([])), name
    for block, goals in GOALS.items():
        for goal in goals.values():
            assert judge(goal, Rows([])) == [MISSING, ""], block


def test_old_spelling_in_rows_is_read_as_today():
    shown = tables.small(report.read_rows(report.ROOT), "emergence")
    assert "mean colors" in shown
    assert "colours" not in shown


def test_benchmarks_are_at_most_a_fifth_of_what_they_measure():
    def lines(folders, suffixes):
        paths = (path for folder in folders for path in (report.ROOT / folder).rglob("*"))
        known = {path.resolve() for path in paths if path.suffix in suffixes}
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in known)

    measured = lines(("amdim_fast", "kernels", "csrc"), (".py", ".h", ".cpp", ".cu"))
    assert 5 * lines(("benchmarks",), (".py",)) <= measured
