"""``amdim-fast embed``."""

from __future__ import annotations

import argparse
from typing import Any

from amdim_fast.cli.options import (
    IMAGES,
    DefaultsFormatter,
    add_max_pixels,
    add_no_progress,
    add_skip_bad,
    add_test_policy,
)
from amdim_fast.data.datasets import DATA_SETS
from amdim_fast.evaluation.embed import embed


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "embed",
        help="write the features of images to a file",
        description="Write the global features of all images, with their names and labels, as"
        " NumPy's .npz (features [N, D], names, splits, labels, classes) or as Parquet, which needs"
        " pyarrow.",
        formatter_class=DefaultsFormatter,
    )
    command.set_defaults(run=_run, makes_views=True)
    command.add_argument("model", metavar="MODEL", help="checkpoint file or folder of an export")
    command.add_argument(
        "data",
        metavar="DATA",
        help=f"{IMAGES}, a packed store or an image file; or the name of a data set:"
        f" {', '.join(DATA_SETS)}",
    )
    command.add_argument("out", metavar="OUT", help="file to write: .npz or .parquet")
    command.add_argument(
        "--data-dir", default="data", help="folder of the files of a data set given by name"
    )
    command.add_argument("--download", action="store_true", help="fetch what is missing there")
    add_skip_bad(command)
    add_max_pixels(command)
    add_test_policy(command)
    command.add_argument("--batch-size", type=int, default=250, help="images encoded at a time")
    command.add_argument(
        "--workers",
        type=int,
        help="processes that decode files, 0 for none; one per CPU if not given",
    )
    command.add_argument(
        "--device",
        help="where the encoder runs, cpu or cuda; if not given, cuda where torch finds a GPU",
    )
    command.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    add_no_progress(command)


def _run(parsed: argparse.Namespace) -> int:
    written = embed(
        parsed.model,
        parsed.data,
        parsed.out,
        data_dir=parsed.data_dir,
        download=parsed.download,
        skip_bad=parsed.skip_bad,
        max_pixels=parsed.max_pixels,
        policy=parsed.policy,
        batch_size=parsed.batch_size,
        workers=parsed.workers,
        device=parsed.device,
        overwrite=parsed.overwrite,
        progress=parsed.progress,
    )
    print(f"wrote {written.path}: {written.images:,} images, {written.width:,} features of each")
    for sentence in written.skipped:
        print(f"left out: {sentence}")
    return 0
