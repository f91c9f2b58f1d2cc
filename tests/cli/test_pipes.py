"""Output that nobody reads any more, and output that cannot be written."""

import os
import subprocess
import sys

import pytest

INFO = [sys.executable, "-m", "amdim_fast", "info"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_error(unbuffered):
    """As in ``amdim-fast info | head``: nothing is said, and the status is that of SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    variables = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(INFO, stdout=writing, stderr=subprocess.PIPE, env=variables, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_output_that_cannot_be_written_is_said():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(INFO, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert done.returncode != 0
    assert "[Errno 28] No space left on device" in done.stderr
