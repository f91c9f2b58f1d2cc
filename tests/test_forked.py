"""Forks are as new interpreters are: arguments, output, exit status, signals, variables."""

import subprocess
import sys

import pytest

from tests.forked import PACKAGE, TORCH
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
@pytest.mark.parametrize(
    ("how", "imported"), [("code", PACKAGE), ("script", PACKAGE), ("module", TORCH)]
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_as_a_new_interpreter(tmp_path, ending, how, imported):
    (tmp_path / "ends.py").write_text(ENDINGS[ending])
    words = {"code": ["-c", ENDINGS[ending]], "script": ["ends.py"], "module": ["-m", "ends"]}[how]
    forked = run([*words, "--flag", 7], tmp_path, imported=imported)
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


def test_variables(tmp_path, monkeypatch):
    """Added, changed and removed."""
    monkeypatch.setenv("REMOVED", "1")
    code = "import os; print(*map(os.environ.get, ('ADDED', 'REMOVED', 'OMP_NUM_THREADS')))"
    variables = {"ADDED": "2", "REMOVED": None, "OMP_NUM_THREADS": "3"}
    for imported in (PACKAGE, TORCH, ()):
        done = run(["-c", code], tmp_path, variables=variables, imported=imported)
        assert done.stdout == "2 None 3\n"
