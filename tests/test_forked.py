"""Forks are as new interpreters are: arguments, output, exit status, signals, variables."""

import subprocess
import sys

import pytest

from tests.processes import run, start

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere none are forked")
ENDINGS = {
    "returns": "import sys; print(sys.argv, __name__)",
    "status": "import sys; sys.exit(3)",
    "words": "import sys; sys.exit('no room')",
    "error": "1 / 0",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "atexit": "import atexit; atexit.register(print, 'at the end'); print('before')",
    "thread": "import threading, time; threading.Timer(0.1, print, ['late']).start()",
    "folder": "import os; print(os.getcwd(), os.environ['OMP_NUM_THREADS'])",
}


def last_lines(done):
    return done.returncode, done.stdout, done.stderr.splitlines()[-1:]


@LINUX
@pytest.mark.parametrize("how", ["code", "script", "module"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_as_a_new_interpreter(tmp_path, ending, how):
    (tmp_path / "ends.py").write_text(ENDINGS[ending])
    words = {"code": ["-c", ENDINGS[ending]], "script": ["ends.py"], "module": ["-m", "ends"]}[how]
    forked = run([*words, "--flag", 7], tmp_path)
    assert last_lines(forked) == last_lines(run([*words, "--flag", 7], tmp_path, imported=()))


@LINUX
def test_signals_and_waiting(tmp_path):
    process = start(["-c", "import time; print('ready', flush=True); time.sleep(60)"], tmp_path)
    assert process.stdout.readline() == "ready\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.1)
    process.terminate()
    assert process.wait(timeout=60) == -15
    process.kill()
    with process:
        pass
