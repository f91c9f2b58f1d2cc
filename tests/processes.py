"""Scripts of the tests as processes of their own, alone or as the ranks of a group."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# One thread each; the scripts import what else is under tests/.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(arguments, folder, *, variables=None, stderr=subprocess.PIPE):
    """``python ARGUMENTS`` in ``folder``, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | ENVIRONMENT | (variables or {}),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def run_ranks(script, world, folder, seconds):
    """Wait for ``python SCRIPT RANK WORLD FOLDER`` of all ranks; none is left.

    What they printed is shown where one fails.
    """
    ranks = [
        start([script, rank, world, folder], folder, stderr=subprocess.STDOUT)
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=seconds)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(said)
