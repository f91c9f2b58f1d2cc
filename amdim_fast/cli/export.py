"""``amdim-fast export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from amdim_fast.checkpoints.export_config import CONFIG
from amdim_fast.cli.options import DefaultsFormatter, add_test_policy
from amdim_fast.model.export import export_encoder
from amdim_fast.model.export_program import PROGRAMS, export_program

SAFETENSORS = "safetensors"


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "export",
        help="write a checkpoint's encoder as safetensors, to share, or as a program",
        description="Write the encoder of a checkpoint, ours or the original's, with a JSON"
        " configuration: as safetensors, for AMDIM.from_pretrained(OUT_DIR) and amdim-fast"
        " evaluate; or as a program for batches of any size that runs without this package.",
        formatter_class=DefaultsFormatter,
    )
    command.set_defaults(run=_run)
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint file")
    command.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder to create")
    command.add_argument(
        "--format",
        choices=(SAFETENSORS, *PROGRAMS),
        default=SAFETENSORS,
        help="safetensors; torch-export, for torch.export.load; or onnx, which needs onnxscript",
    )
    add_test_policy(command)


def _run(parsed: argparse.Namespace) -> int:
    if parsed.format != SAFETENSORS:
        program = export_program(
            parsed.checkpoint, parsed.out_dir, format=parsed.format, policy=parsed.policy
        )["program"]
        size = sum(path.stat().st_size for path in parsed.out_dir.iterdir())
        print(f"wrote {parsed.out_dir}: {program}, {size / 1e6:.1f} MB, and {CONFIG}")
        return 0
    config = export_encoder(parsed.checkpoint, parsed.out_dir, policy=parsed.policy)
    size = (parsed.out_dir / config.weights).stat().st_size
    print(f"wrote {parsed.out_dir}: {config.weights}, {size / 1e6:.1f} MB, and {CONFIG}")
    return 0
