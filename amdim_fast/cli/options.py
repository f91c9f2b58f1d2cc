"""Options that several commands share."""

from __future__ import annotations

import argparse


def add_max_pixels(command: argparse.ArgumentParser) -> None:
    """Add ``--max-pixels``, for commands that decode image files."""
    command.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="take image files of up to this many pixels; if not given, 178,956,970",
    )
