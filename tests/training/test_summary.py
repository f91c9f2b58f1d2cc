"""The peak memory that a run reports."""

import torch

from amdim_fast.training.summary import _peak_memory
from tests.processes import run

PARENT = """
import subprocess, sys
held = b"1" * int(sys.argv[1])
print(subprocess.check_output([sys.executable, "-c", sys.argv[2]], text=True))
"""
CHILD = """
import torch
from amdim_fast.training.summary import _peak_memory
print(_peak_memory(torch.device("cpu")))
"""


def test_a_process_reports_its_own_peak(tmp_path):
    """And not that of the process that started it."""
    held = 1_200_000_000
    done = run(["-c", PARENT, held, CHILD], tmp_path, imported=())
    assert done.returncode == 0, done.stderr
    assert 10**8 < int(done.stdout) < held


def test_the_peak_grows():
    before = _peak_memory(torch.device("cpu"))
    held = torch.ones(before // 4 + 10**7)
    assert _peak_memory(torch.device("cpu")) >= held.nbytes
