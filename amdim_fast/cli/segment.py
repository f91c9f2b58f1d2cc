"""``amdim-fast segment``."""

from __future__ import annotations

import argparse
from typing import Any

from amdim_fast.cli.options import DefaultsFormatter, add_max_pixels
from amdim_fast.segmentation.files import segment_files
from amdim_fast.views.params import POLICIES


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "segment",
        help="color images by the likeliest component at each place",
        description="Write, for each image NAME, NAME-r7.png, NAME-r5.png and, for larger images,"
        " NAME-dense.png, with the likeliest component's color blended over it, and NAME.npz with"
        " the raw posteriors. Needs a checkpoint pre-trained with --mixture.",
        formatter_class=DefaultsFormatter,
    )
    command.set_defaults(run=_run, makes_views=True)
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint with components")
    command.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    command.add_argument(
        "--bank",
        nargs="+",
        default=[],
        metavar="FILE",
        help="images whose locations are the negatives; if not given, the other images",
    )
    command.add_argument(
        "--policy", choices=POLICIES, help="normalization; if not given, the checkpoint's"
    )
    command.add_argument("--out-dir", default="segments", help="folder to write to")
    command.add_argument(
        "--device",
        help="where the encoder runs, cpu or cuda; if not given, cuda where torch finds a GPU",
    )
    command.add_argument(
        "--stride",
        type=int,
        help="pixels between dense windows; a quarter of the encoder's size if not given",
    )
    command.add_argument("--opacity", type=float, default=0.5, help="opacity of the colors, 0 to 1")
    add_max_pixels(command)
    command.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _run(parsed: argparse.Namespace) -> int:
    written = segment_files(
        parsed.checkpoint,
        parsed.images,
        parsed.out_dir,
        bank=parsed.bank,
        policy=parsed.policy,
        device=parsed.device,
        stride=parsed.stride,
        opacity=parsed.opacity,
        max_pixels=parsed.max_pixels,
        overwrite=parsed.overwrite,
        progress=True,
    )
    print("\n".join(map(str, written)))
    return 0
