"""Import time and covered lines: rows, and the goals they are held to."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from benchmarks import bench_import, harness, line_coverage
from benchmarks.repository_table import repository_table
from benchmarks.rows import MISSING, Rows


def row(name, provider, metric, unit, value):
    condition = harness.Condition(name, "case", provider, "", {}, "")
    return harness.make_row(condition, metric, unit, [value], device="some CPU")


def imports(ours, torch=1000.0):
    return [
        row("import", "torch", "time", "ms", torch),
        row("import", "amdim_fast", "time", "ms", ours),
    ]


@pytest.mark.parametrize(("ours", "verdict"), [(1499.0, "met"), (1500.0, "not met")])
def test_goal_of_the_import(ours, verdict):
    line = repository_table(Rows(imports(ours))).splitlines()[2]
    assert line.startswith("| import | under 1.5x torch's | 1.5 s, 1.50x torch's 1 s |")
    assert line.endswith(f"| {verdict} |")


@pytest.mark.parametrize(("share", "verdict"), [(90.0, "not met"), (90.1, "met")])
def test_goal_of_the_covered_lines(share, verdict):
    rows = Rows([row("coverage", "kernels", "lines_reached", "%", share)])
    *_, package, kernels = repository_table(rows).splitlines()[:5]
    assert package.endswith(f"| {MISSING} |  |")
    assert kernels.endswith(f"| above 90 % | {share:g} % | {verdict} |")


def test_what_was_not_run_is_said():
    noted = {**row("coverage", "kernels", "lines_reached", "%", 95.0), "note": "a file left out"}
    assert "`kernels/` that the tests reach, a file left out |" in repository_table(Rows([noted]))


def test_import_bench_makes_a_row_a_module(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_import, "MODULES", ("json", "amdim_fast"))
    monkeypatch.setattr(bench_import, "REPEATS", 1)
    monkeypatch.setattr(bench_import, "WARM_UPS", 0)
    out = tmp_path / "rows.jsonl"
    assert bench_import.main(["--out", str(out)]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["provider"], r["n"], r["unit"]) for r in found] == [
        ("json", 1, "ms"),
        ("amdim_fast", 1, "ms"),
    ]


def test_an_import_that_fails_is_no_measurement():
    with pytest.raises(subprocess.CalledProcessError):
        bench_import.run_import("no_such_module")


def summaries(**lines):
    return {
        "files": {
            name.replace("__", "/") + ".py": {
                "summary": {"num_statements": n, "covered_lines": reached}
            }
            for name, (n, reached) in lines.items()
        }
    }


def test_shares_are_of_lines_not_of_files():
    report = summaries(
        amdim_fast__a=(90, 90), amdim_fast__ops__b=(10, 0), kernels__c=(3, 2), kernels__d=(5, 0)
    )
    assert line_coverage.covered(report) == {"amdim_fast": 90.0, "kernels": 25.0}
    linked = summaries(amdim_fast__a=(1, 1), amdim_fast__kernels__c=(4, 1))
    assert line_coverage.covered(linked) == {"amdim_fast": 100.0, "kernels": 25.0}


def test_a_report_without_the_kernels_is_refused():
    with pytest.raises(ValueError, match="no file of kernels/"):
        line_coverage.covered(summaries(amdim_fast__a=(1, 1)))


def release(package):
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.mark.skipif(
    release("triton") < (3, 8) and release("numpy") >= (2, 4),
    reason="Triton's interpreter before 3.8 does not know NumPy from 2.4",
)
def test_lines_of_a_kernel_and_of_a_process_are_counted(tmp_path):
    """A kernel in the interpreter, called in a process that a measured process starts."""
    inner = (
        "import torch; from amdim_fast import nce_loss;"
        "nce_loss(torch.randn(4, 8), torch.randn(4, 3, 8), backend='triton')"
    )
    script = tmp_path / "outer.py"
    script.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {inner!r}], check=True)\n"
    )
    data = tmp_path / "data"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    environment |= {"TRITON_INTERPRET": "1", "COVERAGE_FILE": str(data)}
    tool = [sys.executable, "-m", "coverage"]
    options = {"cwd": harness.ROOT, "env": environment, "check": True, "capture_output": True}
    subprocess.run([*tool, "run", str(script)], **options)
    subprocess.run([*tool, "combine", "-q"], **options)
    subprocess.run([*tool, "json", "-q", "-o", str(tmp_path / "report.json")], **options)
    files = json.loads((tmp_path / "report.json").read_text())["files"]
    (forward,) = (file for name, file in files.items() if name.endswith("nce_forward.py"))
    assert forward["summary"]["percent_covered"] > 40
    out = tmp_path / "rows.jsonl"
    assert line_coverage.main(["--data-file", str(data), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["provider"] for r in rows] == ["amdim_fast", "kernels"]
    assert all(0 < r["q50"] < 100 for r in rows)
