"""The lines that tests reach: kernels and started processes count, and too few of them fail."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL = [sys.executable, "-m", "coverage"]


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
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    environment |= {"TRITON_INTERPRET": "1", "COVERAGE_FILE": str(tmp_path / "data")}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    report = tmp_path / "report.json"
    subprocess.run([*TOOL, "run", str(script)], check=True, **options)
    subprocess.run([*TOOL, "combine", "-q"], check=True, **options)
    subprocess.run([*TOOL, "json", "-q", "--fail-under=0", "-o", report], check=True, **options)
    files = json.loads(report.read_text())["files"]
    (rows,) = (file for name, file in files.items() if name.endswith("nce_rows.py"))
    assert rows["summary"]["percent_covered"] > 40
    # One call reaches far fewer lines than the threshold of pyproject.toml asks for.
    judged = subprocess.run([*TOOL, "report"], check=False, **options)
    assert judged.returncode == 2, judged.stdout
    assert "fail-under=95" in judged.stdout
