"""Rows of older code: what a digest covers, and where the mark stands."""

import shutil

import pytest

from benchmarks import harness, report, sources
from benchmarks.report import tables
from benchmarks.report.goals import SMALL
from benchmarks.report.rows import MARK, STALE, Rows, cell, conditions

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
    blocks = {"README.md": {"nce_headline"}, "benchmarks/NOTES.md": {"nce_goals"}}
    blocks["docs/page.md"] = report.BLOCKS.keys() - {"nce_headline", "nce_goals"}
    for document, names in blocks.items():
        (tmp_path / document).parent.mkdir(exist_ok=True)
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
            file.write("CHANGED = 1\n" if name.endswith(".py") else "// changed\n")

    return change


def test_a_digest_is_of_contents_alone(tree):
    for name in (*sources.FOLDERS, "demo"):
        assert sources.digest(name, tree) == sources.digest(name)


def test_every_pattern_names_files_and_every_source_of_the_core_belongs_to_a_bench():
    patterns = {pattern for found in (*sources.FOLDERS.values(), sources.STEP) for pattern in found}
    known = set()
    for pattern in patterns:
        found = set(sources.ROOT.glob(pattern))
        assert found, pattern
        known |= found
    core = ("kernels/*.py", "amdim_fast/nce/*.py", "amdim_fast/views/*.py", "csrc/**/*.*")
    assert {path for pattern in core for path in sources.ROOT.glob(pattern)} <= known


FIRST, SECOND = "amdim_fast/nce/products.py", "amdim_fast/nce/plan.py"


def test_moving_statements_and_writing_prose_change_no_digest(tree):
    digest = sources.digest.__wrapped__
    before = digest("nce", tree)
    first, second = ((tree / name).read_text() for name in (FIRST, SECOND))
    (tree / SECOND).unlink()
    body = first.partition("from __future__ import annotations")[2]
    moved = f'"""Another sentence."""\n\nimport abc  # for nothing\n{body}\n\n{second}'
    moved = moved.replace("from __future__ import annotations", "")
    (tree / FIRST).write_text(moved)
    assert digest("nce", tree) == before
    (tree / FIRST).write_text(moved.replace("return", "yield", 1))
    assert digest("nce", tree) != before


def test_docstrings_and_imports_inside_functions_do_not_count(tmp_path):
    digest = sources.digest.__wrapped__
    (tmp_path / "kernels").mkdir()
    found = set()
    for inside in ("", '"""What it does."""\n    ', "import math\n    ", "# why\n    "):
        (tmp_path / "kernels" / "one.py").write_text(f"def f(x):\n    {inside}return x + 1\n")
        found.add(digest("aot", tmp_path))
    assert len(found) == 1
    (tmp_path / "kernels" / "one.py").write_text("def f(x):\n    return x + 2\n")
    assert digest("aot", tmp_path) not in found


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
        ("aot", VIEW, False),
    ],
)
def test_a_change_marks_the_rows_that_it_concerns(copied, name, file, grows_old):
    row = made(name)
    assert not sources.stale(row)
    copied(file)
    assert sources.stale(row) is grows_old
    assert not sources.stale(made(name))


def test_a_row_that_names_no_source_is_old():
    row = made()
    del row["source"]
    assert sources.stale(row)


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
        made("train_step", "amdim_fast", 3.0, "data_and_views", "%", case="cpu-digits"),
    ]


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        ("augment", "1,500 images/s (3.8x)"),
        ("augment_goals", "3.75x"),
        ("mixture", "1.20x"),
        ("mixture_goals", "1.20x"),
        ("step_goals", "3 %"),
    ],
)
def test_marks_of_tables_and_goals(block, shown):
    fresh = report.BLOCKS[block](Rows(many_rows()))
    assert f"| {shown} |" in fresh
    assert MARK not in fresh
    assert f"| {shown}{MARK} |" in report.BLOCKS[block](Rows(map(old, many_rows())))


def test_marks_of_the_ahead_of_time_gate():
    rows = report.read_rows(sources.ROOT).compiled
    fresh = [{**row, "source": sources.digest("aot")} for row in rows]
    assert MARK not in tables.compiled(Rows(fresh))
    assert tables.compiled(Rows(map(old, rows))).endswith(STALE)


def test_check_fails_until_the_marks_are_written(tree, copied, capsys):
    path = tree / "benchmarks" / "results" / "nce.jsonl"
    small = {"case": SMALL, "B": 480}
    for provider, value in (("reference", 1000.0), ("torch_objective", 250.0)):
        condition = harness.Condition("nce", SMALL, provider, "forward_backward", small, "float32")
        row = harness.make_row(condition, "time", "ms", [value], device="AMD EPYC")
        harness.append_row({**row, "instructions": "AVX2"}, path)
    report.main([], tree)
    assert report.main(["--check"], tree) == 0
    fresh = (tree / "benchmarks" / "NOTES.md").read_text()
    assert "| 4.00x | met, aim too |" in fresh
    assert MARK not in fresh + (tree / "README.md").read_text()
    copied(KERNEL)
    assert report.main(["--check"], tree) == 1
    assert "NOTES.md disagrees with the rows" in capsys.readouterr().out
    report.main([], tree)
    assert report.main(["--check"], tree) == 0
    notes = (tree / "benchmarks" / "NOTES.md").read_text()
    assert f"| 4.00x{MARK} | met, aim too |" in notes
    assert notes.count(STALE) == 1
    assert STALE in (tree / "README.md").read_text()
