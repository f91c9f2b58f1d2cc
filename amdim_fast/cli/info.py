"""``amdim-fast info``."""

from __future__ import annotations

import argparse
from typing import Any

from amdim_fast.cli.installation import describe_installation, describe_model


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "info",
        help="say what is installed, or what a checkpoint holds",
        description="Print versions, devices, compiled libraries and backends and, of a checkpoint"
        " or an export, architecture, parameters, recipe and step.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "model", metavar="MODEL", nargs="?", help="checkpoint file or folder of an export"
    )


def _run(parsed: argparse.Namespace) -> int:
    facts = {} if parsed.model is None else describe_model(parsed.model)
    tables = [facts, describe_installation()]
    width = max(len(name) for table in tables for name in table)
    lines = [[f"{name:<{width}}  {value}" for name, value in table.items()] for table in tables]
    print("\n\n".join("\n".join(part) for part in lines if part))
    return 0
