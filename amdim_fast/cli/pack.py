"""``amdim-fast pack``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from amdim_fast.cli.options import DefaultsFormatter, add_max_pixels, add_no_progress
from amdim_fast.data.packed_store import MANIFEST, SKIPPED, verify_store
from amdim_fast.data.packing import pack


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "pack",
        help="decode a folder of images once, for training without JPEG",
        description="Decode a folder of images into a packed store, which --data-dir takes in place"
        " of the folder. After an interruption, the same command continues.",
        formatter_class=DefaultsFormatter,
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "source",
        metavar="SRC",
        help="train/ and val/ of class folders, class folders, images; a list of files: .txt"
        " with a path in each line, or .csv or .tsv with the columns path, label and split; tar"
        " shards of WebDataset's layout; or a data set that Hugging Face's datasets saved, or its"
        " Parquet files",
    )
    command.add_argument(
        "destination", metavar="DST", help="folder of the store, new or unfinished"
    )
    command.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help="shrink larger images to a shorter side of this many pixels; if not given, none",
    )
    command.add_argument(
        "--workers", type=int, help="processes, 0 for none; one per CPU if not given"
    )
    command.add_argument(
        "--skip-bad",
        action="store_true",
        help=f"leave out bad images and list them in DST/{SKIPPED}",
    )
    add_max_pixels(command)
    command.add_argument(
        "--channels",
        type=int,
        default=3,
        metavar="C",
        help="channels of the images: 3 is RGB, 1 gray, 4 RGBA, others are of .npy files",
    )
    add_no_progress(command, "show no bar, and do not say what is left out")
    command.add_argument(
        "--verify",
        action="store_true",
        help="then compare all files with their SHA-256; if DST is finished, do only that",
    )


def _run(parsed: argparse.Namespace) -> int:
    if not (parsed.verify and (Path(parsed.destination) / MANIFEST).exists()):
        packed = pack(
            parsed.source,
            parsed.destination,
            size=parsed.size,
            workers=parsed.workers,
            skip_bad=parsed.skip_bad,
            max_pixels=parsed.max_pixels,
            channels=parsed.channels,
            progress=parsed.progress,
        )
        print(f"packed {packed.images:,} images into {packed.path}")
        if packed.skipped:
            print(f"skipped {len(packed.skipped):,} bad images, see {packed.path / SKIPPED}")
    if parsed.verify:
        images = verify_store(parsed.destination)
        print(f"verified {images:,} images in {parsed.destination}")
    return 0
