"""``amdim-fast pretrain``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from amdim_fast.pretraining import pretrain
from amdim_fast.recipes import RECIPES, options


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "pretrain",
        help="pre-train an encoder and probe it",
        description="Pre-train an encoder; a linear probe runs before and after.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_run)
    command.add_argument("--recipe", choices=RECIPES, default="digits", help="what to run")
    command.add_argument("--name", help="of the run; the recipe and the time if not given")
    command.add_argument("--runs-dir", default="runs", help="folder of runs")
    command.add_argument(
        "--data-dir", default="data", help="folder of the data set's files, or a packed store"
    )
    command.add_argument("--download", action="store_true", help="fetch what is missing there")
    command.add_argument(
        "--skip-bad", action="store_true", help="leave out image files that cannot be decoded"
    )
    command.add_argument("--seed", type=int, default=0, help="of everything random")
    command.add_argument("--device", default="cpu", help="where the encoder and the loss run")
    command.add_argument("--log-every", type=int, default=10, help="steps between log records")
    group = command.add_argument_group("fields of the recipe, its own values by default")
    for name, (kind, text) in options().items():
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=text)


def _run(parsed: argparse.Namespace) -> int:
    changed = {name: getattr(parsed, name) for name in options() if name in parsed}
    summary = pretrain(
        replace(RECIPES[parsed.recipe], **changed),
        name=parsed.name,
        runs_dir=parsed.runs_dir,
        data_dir=parsed.data_dir,
        download=parsed.download,
        skip_bad=parsed.skip_bad,
        seed=parsed.seed,
        device=parsed.device,
        log_every=parsed.log_every,
    )
    print(format_summary(summary))
    return 0


def format_summary(summary: dict[str, Any]) -> str:
    """The small table at the end of a run."""
    rows = [
        ("linear probe, raw pixels", f"{summary['accuracy_raw_pixels']:.1%}"),
        ("linear probe, random weights", f"{summary['accuracy_random_weights']:.1%}"),
        ("linear probe, pre-trained", f"{summary['accuracy_pretrained']:.1%}"),
        ("training time", f"{summary['train_seconds']:.0f} s"),
        ("training rate", f"{summary['images_per_second']:.0f} images/s"),
        ("peak memory", f"{summary['peak_memory_bytes'] / 1e6:.0f} MB"),
        ("loss backend", summary["loss_backend"]),
        ("run, with curves.png", summary["folder"]),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)
