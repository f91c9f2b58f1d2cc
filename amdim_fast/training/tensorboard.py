"""TensorBoard in a process of its own, while a run lasts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from amdim_fast.optional import require

HOST = "localhost"
# Ends with its standard input, which the system closes however the run ends.
_SERVE = """
import os, sys, threading
def wait():
    sys.stdin.buffer.read()
    os._exit(0)
threading.Thread(target=wait, daemon=True).start()
from tensorboard.main import run_main
run_main()
"""


def check_tensorboard(port: int | None) -> None:
    """Make sure, before a run begins, that TensorBoard is installed and its port is free.

    Raises:
        ModuleNotFoundError: TensorBoard is missing; says what to install.
        ValueError: there is no such port. OSError: the port is taken.
    """
    require("tensorboard", "--tensorboard", "tensorboard")
    if port is None:
        return
    if not 0 < port < 2**16:
        raise ValueError(f"tensorboard_port is {port}; it must be from 1 to 65535")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise OSError(
                f"tensorboard_port is {port}, where TensorBoard cannot listen ({error.strerror});"
                " choose another, or leave it out and open the run's folder with tensorboard"
            ) from error


class TensorBoardServer:
    """Serves the events of a folder at ``http://localhost:PORT``.

    It ends with ``close``, and with this process, even when that is killed.
    """

    def __init__(self, folder: str | os.PathLike[str], port: int) -> None:
        command = [sys.executable, "-c", _SERVE, f"--logdir={os.fspath(folder)}"]
        self._process = subprocess.Popen(
            [*command, f"--host={HOST}", f"--port={port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.communicate()
