"""Python processes that start at once: forks of one that has imported torch, or the package too.

That one runs no op and has no threads, so that its forks are as new processes are, but for what is
imported already and for the variables of the environment that are read then.
"""

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as ReadersTimeout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# One thread each; the scripts import what else is under tests/.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# What takes longest to import: all of it, unless a test is about what the package imports.
TORCH = ("torch",)
PACKAGE = (
    *("torch._dynamo", "torch.distributed", "torch.optim", "torchvision.transforms"),
    *("matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib.mathtext", "tqdm"),
    *("amdim_fast.cli.main", "amdim_fast.training.run", "amdim_fast.evaluation.evaluate"),
)
NUMBER_BYTES = array.array("i").itemsize


@functools.cache
def _server(imported):
    """The connection to the process that forks; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno()), *imported],
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    atexit.register(lambda: (ours.close(), server.wait()))
    return ours


class Process:
    """``python ARGUMENTS`` in ``folder``, with what tests use of ``subprocess.Popen``."""

    def __init__(self, arguments, folder, environment, *, stderr, session, imported):
        self.args, self.returncode = arguments, None
        out, out_end = os.pipe()
        err, err_end = os.pipe() if stderr == subprocess.PIPE else (None, out_end)
        self._status, status_end = os.pipe()
        request = json.dumps([arguments, str(folder), environment, session]).encode()
        socket.send_fds(_server(imported), [request], [out_end, err_end, status_end])
        for end in {out_end, err_end, status_end}:
            os.close(end)
        self.stdout = os.fdopen(out)
        self.stderr = None if err is None else os.fdopen(err)
        self.pid = self._number()

    def _number(self):
        return array.array("i", os.read(self._status, NUMBER_BYTES))[0]

    def poll(self):
        """The exit status, negative after a signal, or None."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = self._number()
        return self.returncode

    def wait(self, timeout=None):
        """The exit status, once there is one."""
        if self.poll() is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._number()
        return self.returncode

    def communicate(self, timeout=None):
        """What it wrote to stdout and stderr, once both are closed; then it has ended."""
        streams = [self.stdout] if self.stderr is None else [self.stdout, self.stderr]
        readers = ThreadPoolExecutor(len(streams))
        try:
            said = list(readers.map(lambda stream: stream.read(), streams, timeout=timeout))
        except ReadersTimeout:
            raise subprocess.TimeoutExpired(self.args, timeout) from None
        finally:
            readers.shutdown(wait=False)
        self._close()
        self.wait(timeout)
        return said[0], said[1] if len(said) == 2 else None

    def send_signal(self, number):
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """As by ``kill -9``."""
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        """As by ``kill``."""
        self.send_signal(signal.SIGTERM)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()
        self.wait()

    def _close(self):
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def __del__(self):
        os.close(self._status)


def _serve(connection):
    """Fork for each request; returns in the fork, with its arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that end are not waited for
    while True:
        request, ends, *_ = socket.recv_fds(connection, 2**17, 3)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _forked(ends, *json.loads(request))
        for end in ends:
            os.close(end)


def _forked(ends, arguments, folder, environment, session):
    """Fork once more: one process waits for the other and reports how it ended."""
    out, err, status = ends
    pid = os.fork()
    if pid:
        os.close(out)
        os.close(err)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.write(status, array.array("i", [pid]))
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(status, array.array("i", [ended]))
        os._exit(0)
    os.close(status)
    if session:
        os.setsid()
    for end, number in ((out, 1), (err, 2)):
        os.dup2(end, number)
        os.close(end)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


def _run(arguments):
    """As ``python ARGUMENTS``: -c CODE, -m MODULE or a script."""
    first, *rest = arguments
    if first == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    else:
        sys.argv, sys.path[0] = list(arguments), os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")


def _run_and_leave(arguments):
    """End as an interpreter does, but without clearing the modules, which takes a second."""
    status = 0
    try:
        _run(arguments)
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            raise
        status = error.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.freeze()  # collections leave the memory of what is there shared
    _run_and_leave(_serve(socket.socket(fileno=int(sys.argv[1]))))
