"""``amdim-fast export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from amdim_fast.checkpoints.export_config import CONFIG
from amdim_fast.model.export import export_encoder
from amdim_fast.views.params import POLICIES


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "export",
        help="write a checkpoint's encoder as safetensors, to share",
        description="Write the encoder of a checkpoint, ours or the original's, as safetensors with"
        " a JSON configuration, for AMDIM.from_pretrained(OUT_DIR) and amdim-fast evaluate.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_run)
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint file")
    command.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder to create")
    command.add_argument(
        "--policy",
        choices=POLICIES,
        help="test-time transform; if not given, the file's, or else the original's for its size",
    )


def _run(parsed: argparse.Namespace) -> int:
    config = export_encoder(parsed.checkpoint, parsed.out_dir, policy=parsed.policy)
    size = (parsed.out_dir / config.weights).stat().st_size
    print(f"wrote {parsed.out_dir}: {config.weights}, {size / 1e6:.1f} MB, and {CONFIG}")
    return 0
