"""Rows of older code: what a digest covers, and where the mark stands."""

import shutil

import pytest

from benchmarks import harness, report, sources
from benchmarks.aot_table import aot_table
from benchmarks.augment_table import augment_goals, augment_table
from benchmarks.mixture_table import mixture_goals, mixture_table
from benchmarks.rows import MARK, STALE, Rows, cell, conditions
from benchmarks.step_table import step_goals

KERNEL, VIEW = "kernels/nce_forward.py", "csrc/shared/resample.h"


def made(
    name="nce", provider="torch", value=250.0, metric="time", unit="ms", case="case", **shapes
):
    condition = harness.Condition(name, case, provider, "step", shapes, "float32")
    return harness.make_row(condition, metric, unit, [value], device="some CPU")


def old(row):
    return {**row, "source": "0" * 16}


@pytest.fixture
def tree(tmp_path):
    """What all digests read, and the documents, away from the repository."""
    for folder in ("kernels", "csrc", "amdim_fast"):
        shutil.copytree(
            sources.ROOT / folder,
            tmp_path / folder,
            ignore=shutil.ignore_patterns("*.so", "__pycache__", "kernels"),
        )
    (tmp_path / "benchmarks").mkdir()
    for document in ("README.md", "benchmarks/NOTES.md"):
        names = report.REQUIRED[document]
        text = "".join(f"<!-- report:{name} -->\n<!-- /report:{name} -->\n" for name in names)
        (tmp_path / document).write_text(text)
    return tmp_path


@pytest.fixture
def copied(tree, monkeypatch):
    """The tree in place of the repository; returns how to change one of its files."""
    digest = sources.digest.__wrapped__
    monkeypatch.setattr(sources, "digest", lambda name, root=tree: digest(name, root))

    def change(name):
        with (tree / name).open("a") as file:
            file.write("\n")

    return change


def test_a_digest_is_of_contents_alone(tree):
    for name in (*sources.FILES, "demo"):
        assert sources.digest(name, tree) == sources.digest(name)


def test_every_pattern_names_files_and_every_kernel_belongs_to_a_bench():
    for name in sources.FILES:
        for pattern in sources.FILES[name]:
            assert list(sources.ROOT.glob(pattern)), pattern
    known = {path for name in (*sources.FILES, "demo") for path in sources.files(name)}
    there = {
        path
        for folder, pattern in (("kernels", "*.py"), ("amdim_fast/ops", "*.py"), ("csrc", "**/*.*"))
        for path in (sources.ROOT / folder).glob(pattern)
    }
    assert {path.name for path in there - known} <= {"__init__.py", "_library.py"}


@pytest.mark.parametrize(
    ("name", "file", "grows_old"),
    [
        ("nce", KERNEL, True),
        ("nce", "amdim_fast/nce/products.py", True),
        ("nce", VIEW, False),
        ("augment", VIEW, True),
        ("augment", "csrc/cuda/augment.cu", True),
        ("augment", "amdim_fast/views/sampler.py", True),
        ("augment", KERNEL, False),
        ("data", "amdim_fast/data/packed_store.py", True),
        ("demo", KERNEL, True),
        ("demo", VIEW, True),
        ("a bench to come", KERNEL, True),
        ("import", KERNEL, False),
    ],
)
def test_a_change_marks_the_rows_that_it_concerns(copied, name, file, grows_old):
    row = made(name)
    assert not sources.stale(row)
    copied(file)
    assert sources.stale(row) is grows_old
    assert not sources.stale(made(name))


def test_a_row_that_names_no_source_is_old_unless_its_bench_has_no_files():
    for name, grows_old in (("nce", True), ("coverage", False)):
        row = made(name)
        del row["source"]
        assert sources.stale(row) is grows_old


def test_cells_and_conditions():
    fresh, reference = made(), made(provider="reference", value=1000.0)
    assert cell(fresh, reference) == "250 ms (4x)"
    assert cell(old(fresh)) == f"250 ms{MARK}"
    assert cell(old(fresh), reference) == f"250 ms (4x){MARK}"
    assert cell(fresh, old(reference)) == f"250 ms (4x){MARK}"
    assert MARK not in conditions([fresh, reference])
    assert conditions([fresh, old(reference)]).endswith(STALE)


def test_rates_improve_upwards():
    fast, slow = (made(metric="rate", unit="images/s", value=value) for value in (600.0, 200.0))
    assert cell(fast, slow) == "600 images/s (3x)"


def many_rows():
    case = "cpu-256px-imagenet128"
    rate = {"metric": "rate", "unit": "images/s", "case": case, "views": 2}
    return [
        made("augment", "amdim_fast", 1500.0, **rate),
        made("augment", "torchvision on Pillow", 400.0, **rate),
        made("mixture", "plain", 100.0),
        made("mixture", "K = 4", 120.0),
        made("train_step", "first version", 300.0, case="cpu-digits"),
        made("train_step", "amdim_fast", 100.0, case="cpu-digits"),
    ]


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        (augment_table, "1,500 images/s (3.8x)"),
        (augment_goals, "3.75x"),
        (mixture_table, "1.20x"),
        (mixture_goals, "1.2x"),
        (step_goals, "3x"),
    ],
)
def test_marks_of_tables_and_goals(block, shown):
    fresh = block(Rows(many_rows()))
    assert f"| {shown} |" in fresh
    assert MARK not in fresh
    assert f"| {shown}{MARK} |" in block(Rows(map(old, many_rows())))


def test_marks_of_the_ahead_of_time_gate():
    rows = report.read_rows(sources.ROOT)
    assert MARK not in aot_table(rows)
    assert aot_table(Rows([], map(old, rows.compiled))).endswith(STALE)


def test_check_fails_until_the_marks_are_written(tree, copied, capsys):
    path = tree / "benchmarks" / "results" / "nce.jsonl"
    small = {"case": report.SMALL, "B": 480}
    for provider, value in (("reference", 1000.0), ("torch", 250.0)):
        condition = harness.Condition(
            "nce", report.SMALL, provider, "forward_backward", small, "float32"
        )
        row = harness.make_row(condition, "time", "ms", [value], device="some CPU")
        harness.append_row(row, path)
    report.main([], tree)
    assert report.main(["--check"], tree) == 0
    fresh = (tree / "benchmarks" / "NOTES.md").read_text()
    assert "| 4.00x | met |" in fresh
    assert MARK not in fresh + (tree / "README.md").read_text()
    copied(KERNEL)
    assert report.main(["--check"], tree) == 1
    assert "NOTES.md disagrees with the rows" in capsys.readouterr().out
    report.main([], tree)
    assert report.main(["--check"], tree) == 0
    notes = (tree / "benchmarks" / "NOTES.md").read_text()
    assert f"| 4.00x{MARK} | met |" in notes
    assert notes.count(STALE) == 1
    assert STALE in (tree / "README.md").read_text()
