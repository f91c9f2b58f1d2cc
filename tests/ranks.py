"""Processes of a group, started as ``python SCRIPT RANK WORLD FOLDER``."""

import os
import subprocess
import sys


def run_ranks(script, world, folder, seconds):
    """Wait for all of them; what they printed is shown where one fails, and none is left."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world), str(folder)],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=seconds)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(said)
