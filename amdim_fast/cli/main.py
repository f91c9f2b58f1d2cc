"""The command ``amdim-fast``."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from amdim_fast.cli import bench, evaluate, export, info, pack, pretrain, segment, views
from amdim_fast.files import printable
from amdim_fast.version import __version__
from amdim_fast.views import compiled

COMMANDS = (pretrain, evaluate, segment, export, info, bench, pack, views)
# What a user can cause; any other error is a bug and keeps its traceback.
_USER_ERRORS = (
    *(ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError, MemoryError),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are not UTF-8, as on stderr
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.makes_views and not compiled.load_cpu():
            raise ModuleNotFoundError(
                f"views need the compiled library, which is not built: {compiled.HOW_TO_BUILD}"
            )
        return parsed.run(parsed)
    except KeyboardInterrupt:
        print("amdim-fast: interrupted", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if parsed.traceback:
            raise
        print(f"amdim-fast: {printable(str(error) or 'out of memory')}", file=sys.stderr)
        return 2


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
