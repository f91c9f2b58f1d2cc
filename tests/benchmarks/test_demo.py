"""``make demo``, made small: every command on the digits recipe."""

import json
import re
from pathlib import Path

from amdim_fast.cli.main import COMMANDS
from benchmarks.demo import progress
from tests.processes import run

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--probe-epochs=1", "--steps=4", "--batch-size=16", "--ndf=4", "--n-rkhs=16", "--depth=1"]
SMALL += ["--no-baselines"]


def demo(folder, *options):
    return run(["-m", "benchmarks.demo", f"--folder={folder}", *options], ROOT)


def test_every_command_on_digits(tmp_path):
    folder = tmp_path / "demo"
    done = demo(folder, *SMALL, "--device=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    ran = {line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ amdim-fast")}
    assert ran == {command.__name__.rpartition(".")[2] for command in COMMANDS}
    shown = [line for line in done.stdout.splitlines() if line.startswith("command ")]
    assert shown[0] == "command 1 of 11"
    assert [re.sub(r"\d+ s", "N s", line) for line in shown[1:]] == [
        f"command {number} of 11, about N s left" for number in range(2, 12)
    ]
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
    done = demo(tmp_path / "demo", *SMALL, "--device=tpu")
    assert done.returncode == 2
    assert "device is 'tpu'" in done.stderr
    assert "$ amdim-fast bench" in done.stdout
    assert "$ amdim-fast views" not in done.stdout


def test_time_left():
    assert progress(0, 0.0, [1, 3]) == "command 1 of 2"
    assert progress(1, 2.0, [1, 3]) == "command 2 of 2, about 6 s left"
