"""The peak memory that a run reports."""

import subprocess
import sys

import torch

from amdim_fast.training.summary import _peak_memory

PEAK = "import torch; from amdim_fast.training.summary import _peak_memory as peak; "
PARENT = f"""
import subprocess, sys
held = b"1" * int(sys.argv[1])
code = {PEAK + "print(peak(torch.device('cpu')))"!r}
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
"""


def test_a_process_reports_its_own_peak():
    """And not that of the process that started it."""
    held = 1_200_000_000
    command = [sys.executable, "-c", PARENT, str(held)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 10**8 < int(done.stdout) < held


def test_the_peak_grows():
    before = _peak_memory(torch.device("cpu"))
    held = torch.ones(before // 4 + 10**7)
    assert _peak_memory(torch.device("cpu")) >= held.nbytes
