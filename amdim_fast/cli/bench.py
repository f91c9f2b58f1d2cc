"""``amdim-fast bench``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from amdim_fast.bench.comparison import compare
from amdim_fast.bench.files import (
    JSON_NAME,
    PNG_NAME,
    as_json,
    check_drawing,
    draw,
    measurement_line,
    summary,
)
from amdim_fast.cli.options import DefaultsFormatter
from amdim_fast.devices import describe_device, find_device
from amdim_fast.files import check_new_folder, folder_written_whole


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "bench",
        help="measure the loss beside the original's algorithm on this machine",
        description="Time forward and backward of AMDIM's loss, ours and the reference's, in"
        " float32 at growing batches, measure their memory beyond inputs and gradients, and"
        f" calculate the largest batch that fits. Writes {JSON_NAME} and {PNG_NAME}.",
        formatter_class=DefaultsFormatter,
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "--device",
        help="where to measure, cpu or cuda; if not given, cuda where torch finds a GPU",
    )
    command.add_argument("--dim", type=int, default=1024, help="width D of the features")
    command.add_argument(
        "--seconds", type=float, default=45.0, help="time to spend; the smallest batch always runs"
    )
    command.add_argument(
        "--out", type=Path, default=Path("bench"), help="folder to create for the results"
    )


def _run(parsed: argparse.Namespace) -> int:
    device = find_device(parsed.device)
    check_new_folder(parsed.out)
    check_drawing()
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    print(f"device {describe_device(device)}; precision float32; execution eager", flush=True)
    print("forward + backward, and extra peak memory", flush=True)
    result = compare(
        device,
        parsed.dim,
        parsed.seconds,
        lambda measurement: print(measurement_line(measurement), flush=True),
    )
    with folder_written_whole(parsed.out) as folder:
        (folder / JSON_NAME).write_bytes(as_json(result))
        (folder / PNG_NAME).write_bytes(draw(result))
    facts = result.facts
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items() if value)
    print(f"backend {facts['backend']}, products by {facts['products']}; {versions}")
    print(
        f"largest relative difference from the reference {facts['largest_relative_difference']:.1e}"
    )
    print(summary(result))
    print(f"wrote {parsed.out / JSON_NAME} and {parsed.out / PNG_NAME}")
    return 0
