"""Options that several commands share."""

from __future__ import annotations

import argparse

from amdim_fast.views.params import POLICIES

IMAGES = "a folder, a list of files, tar shards, a data set of Hugging Face"


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of options that take a value, if they have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


def add_max_pixels(command: argparse.ArgumentParser) -> None:
    """Add ``--max-pixels``, for commands that decode image files."""
    command.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="take image files of up to this many pixels; if not given, 178,956,970",
    )


def add_skip_bad(command: argparse.ArgumentParser) -> None:
    """Add ``--skip-bad``, for commands that read a data set."""
    command.add_argument(
        "--skip-bad", action="store_true", help="leave out image files that cannot be decoded"
    )


def add_test_policy(command: argparse.ArgumentParser) -> None:
    """Add ``--policy``, for commands that read a model."""
    command.add_argument(
        "--policy",
        choices=POLICIES,
        help="test-time transform; if not given, the file's, or else the original's for its size",
    )


def add_no_progress(
    command: argparse.ArgumentParser,
    effect: str = "show no bars, and do not say first what runs where",
) -> None:
    """Add ``--no-progress``, which is ``progress`` in Python."""
    command.add_argument("--no-progress", dest="progress", action="store_false", help=effect)
