"""Options that several commands share."""

from __future__ import annotations

import argparse


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
