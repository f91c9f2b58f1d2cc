"""``make demo``, made small: every command, as a process of its own, on the digits recipe."""

import json
import subprocess
import sys
from pathlib import Path

from amdim_fast.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--probe-epochs=1", "--steps=4", "--batch-size=16", "--ndf=4", "--n-rkhs=16", "--depth=1"]


def demo(folder, *options):
    command = [sys.executable, "-m", "benchmarks.demo", f"--folder={folder}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_command_on_digits(tmp_path):
    folder = tmp_path / "demo"
    done = demo(folder, *SMALL, "--device=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    ran = {line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ amdim-fast")}
    assert ran == {command.__name__.rpartition(".")[2] for command in COMMANDS}
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["step"] == 4
    found = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert found
    written = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    expected = {"views.png", "packed/manifest.json", "run/curves.png", "encoder/config.json"}
    assert expected <= written
    assert any(name.startswith("segments/") and name.endswith("-r7.png") for name in written)
    placed = [line for line in done.stdout.splitlines() if line.endswith(" --device=cpu")]
    assert {line.split()[2] for line in placed} >= {"bench", "evaluate", "segment"}
    trained = [line for line in done.stdout.splitlines() if "amdim-fast pretrain" in line]
    assert len(trained) == 2
    assert all(" --device=cpu " in line for line in trained)
    again = demo(folder, *SMALL)
    assert again.returncode == 2
    assert again.stderr.endswith(f"{folder} exists; name another --folder\n")


def test_a_command_that_fails_ends_it(tmp_path):
    done = demo(tmp_path / "demo", *SMALL, "--precision=half")
    assert done.returncode == 2
    assert "precision is 'half'" in done.stderr
    assert "$ amdim-fast evaluate" not in done.stdout
