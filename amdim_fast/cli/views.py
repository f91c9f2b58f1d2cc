"""``amdim-fast views``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from amdim_fast.checks import LARGEST_SEED, whole_number
from amdim_fast.cli.options import DefaultsFormatter, add_max_pixels
from amdim_fast.views.params import POLICIES
from amdim_fast.views.sheets import check_new, view_sheet, write_png

MOST_VIEWS = 1000  # in a row of a picture


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "views",
        help="show images beside their random views",
        description="Write a PNG with one row per image: the image, scaled to fit a tile, and its"
        " views, exactly as in training before normalization.",
        formatter_class=DefaultsFormatter,
    )
    command.set_defaults(run=_run, makes_views=True)
    command.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    command.add_argument(
        "--policy",
        choices=POLICIES,
        default="imagenet128",
        help="policy to draw the views from",
    )
    command.add_argument("--views", type=int, default=4, help="views of each image")
    command.add_argument("--seed", type=int, default=0, help="seed of the draw")
    add_max_pixels(command)
    command.add_argument("--out", type=Path, default=Path("views.png"), help="file to write")
    command.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def _run(parsed: argparse.Namespace) -> int:
    whole_number("seed", parsed.seed, least=0, most=LARGEST_SEED)
    whole_number("views", parsed.views, most=MOST_VIEWS)
    check_new(parsed.out, overwrite=parsed.overwrite)
    pixels = view_sheet(
        parsed.images,
        POLICIES[parsed.policy],
        views=parsed.views,
        seed=parsed.seed,
        max_pixels=parsed.max_pixels,
    )
    write_png(parsed.out, pixels)
    print(f"wrote {parsed.out}: {len(parsed.images)} images, {parsed.views} views of each")
    return 0
