"""The command ``amdim-fast``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from amdim_fast.cli import bench, embed, evaluate, export, info, pack, pretrain, segment, views
from amdim_fast.files import printable
from amdim_fast.version import __version__
from amdim_fast.views import compiled

COMMANDS = (pretrain, evaluate, embed, segment, export, info, bench, pack, views)
# What a user can cause; any other error is a bug and keeps its traceback.
_USER_ERRORS = (
    *(ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError, MemoryError),
)

_OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory")  # torch's, on CPU and CUDA


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 2 for bad input, 130 when interrupted, 141 if the reader of the output
        has gone, as ``head`` does, 143 after SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are not UTF-8, as on stderr
    parsed = _parser().parse_args(arguments)
    try:
        with _terminable():
            status = _run(parsed)
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except _Terminated:
        print("amdim-fast: terminated", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("amdim-fast: interrupted", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return 141
        if parsed.traceback:
            raise
        print(f"amdim-fast: {printable(str(error) or 'out of memory')}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if parsed.traceback or not _OUT_OF_MEMORY.search(reason):
            raise
        print(f"amdim-fast: out of memory ({reason})", file=sys.stderr)
        return 2


def _run(parsed: argparse.Namespace) -> int:
    if parsed.makes_views and not compiled.load_cpu():
        raise ModuleNotFoundError(
            f"views need the compiled library, which is not built: {compiled.HOW_TO_BUILD}"
        )
    return parsed.run(parsed)


def _reader_has_gone() -> bool:
    """Whether stdout is a pipe that nobody reads; if so, what is left for it goes nowhere."""
    output = 1
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), output)
    return True


class _Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """A context that SIGTERM ends as Ctrl-C does, so that temporary files go; a second one kills.

    Where the caller handles the signal, or in another thread, nothing changes.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def caught(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Terminated

    signal.signal(signal.SIGTERM, caught)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amdim-fast",
        description="AMDIM pre-training, exact to the original and bounded in memory.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    parser.set_defaults(makes_views=False)
    for command in COMMANDS:
        command.add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
