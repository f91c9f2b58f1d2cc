"""``amdim-fast pretrain``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from amdim_fast.cli.options import IMAGES, add_max_pixels, add_no_progress, add_skip_bad
from amdim_fast.distributed.ranks import rank_of_environment
from amdim_fast.training.log import read_config
from amdim_fast.training.pretrain import pretrain
from amdim_fast.training.recipes import MODEL_SIZES, RECIPES, Recipe, options
from amdim_fast.training.resume import LENGTH


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "pretrain",
        help="pre-train an encoder with online probes",
        description="Pre-train an encoder; if there are labels, probes are trained alongside."
        " SIGTERM or Ctrl-C stops the run after the current step, which is saved; --resume"
        " continues from there. On several GPUs or machines: torchrun --nproc-per-node=4 -m"
        " amdim_fast pretrain ...; the processes share each batch and its negatives,"
        " and a run may resume on another number of them.",
    )
    command.set_defaults(run=_run, makes_views=True)
    command.add_argument("--recipe", choices=RECIPES, help="what to run (default: digits)")
    command.add_argument(
        "--resume",
        metavar="RUN",
        help="resume the run in this folder, bit for bit on a CPU; with --epochs or --steps, and"
        " --milestones, it goes on to another length, also past its end",
    )
    command.add_argument("--name", help="name of the run (default: the recipe and the time)")
    command.add_argument("--runs-dir", default="runs", help="folder of runs (default: runs)")
    command.add_argument(
        "--data-dir",
        help=f"the data set's files: {IMAGES}, or a packed store (default: data)",
    )
    command.add_argument("--download", action="store_true", help="download what is missing there")
    add_skip_bad(command)
    add_max_pixels(command)
    command.add_argument(
        "--no-labels",
        dest="labels",
        action="store_false",
        help="pay no heed to class folders and labels: no probes, and the best checkpoint by loss",
    )
    command.add_argument(
        "--init-from",
        metavar="MODEL",
        help="checkpoint or export whose weights a new run begins with; all else, such as optimizer"
        " and probes, is new",
    )
    command.add_argument("--seed", type=int, help="seed of everything random (default: 0)")
    command.add_argument(
        "--device",
        help="where encoder, loss and views run, cpu or cuda (default: cuda where torch finds a"
        " GPU)",
    )
    command.add_argument(
        "--workers", type=int, help="processes that decode image files (default: one per CPU)"
    )
    command.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long processes wait for one that does not answer (default: 600)",
    )
    add_no_progress(command)
    command.add_argument(
        "--tensorboard", action="store_true", help="also write events for TensorBoard"
    )
    command.add_argument(
        "--tensorboard-port",
        type=int,
        metavar="PORT",
        help="serve these events at this port of localhost during the run",
    )
    sizes = ", ".join(f"{k} {'/'.join(map(str, v))}" for k, v in MODEL_SIZES.items())
    command.add_argument(
        "--model-size", choices=MODEL_SIZES, help=f"ndf/n_rkhs/depth at once: {sizes}"
    )
    fields = command.add_argument_group(
        "fields of the recipe",
        "In brackets: the value of most recipes, then of those that differ.",
    )
    for name, (kind, text) in options().items():
        flag = "--" + name.replace("_", "-")
        described: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text + _defaults(name)}
        if kind is bool:
            fields.add_argument(flag, action=argparse.BooleanOptionalAction, **described)
        elif kind is tuple:
            fields.add_argument(flag, type=int, nargs="*", metavar="EPOCH", **described)
        else:
            metavar = {int: "INT", float: "FLOAT", str: "NAME"}[kind]
            fields.add_argument(flag, type=kind, metavar=metavar, **described)


def _defaults(name: str) -> str:
    """The field's value in every recipe: the most common one, then the exceptions by recipe."""
    values = {recipe: _shown(getattr(RECIPES[recipe], name)) for recipe in RECIPES}
    common = max(values.values(), key=list(values.values()).count)
    others: dict[str, list[str]] = {}
    for recipe, value in values.items():
        if value != common:
            others.setdefault(value, []).append(recipe)
    exceptions = [f"{', '.join(recipes)} {value}" for value, recipes in others.items()]
    return f" [{'; '.join([common, *exceptions])}]"


def _shown(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _recipe(parsed: argparse.Namespace) -> Recipe | None:
    """The recipe as the options change it; None for a resumed run without changes."""
    changed = {name: getattr(parsed, name) for name in options() if name in parsed}
    changed = {k: tuple(v) if isinstance(v, list) else v for k, v in changed.items()}
    given = tuple(changed)
    if "epochs" in changed and changed.setdefault("steps", 0) and changed["epochs"]:
        raise ValueError(
            f"steps is {changed['steps']} and epochs is {changed['epochs']}; give one of them"
        )
    if parsed.model_size:
        sizes = zip(("ndf", "n_rkhs", "depth"), MODEL_SIZES[parsed.model_size], strict=True)
        changed = dict(sizes) | changed
    if parsed.resume is None:
        recipe = replace(RECIPES[parsed.recipe or "digits"], **changed)
        _check_used(recipe, given)
        return recipe
    if parsed.recipe is None and not changed:
        return None
    begun = Recipe.from_dict(read_config(Path(parsed.resume))["recipe"])
    if parsed.recipe is not None:  # it says nothing of how long the run should be
        kept = {name: getattr(begun, name) for name in LENGTH}
        begun = replace(RECIPES[parsed.recipe], **kept)
    return replace(begun, **changed)


def _check_used(recipe: Recipe, given: Iterable[str]) -> None:
    """Raise ValueError if a field that was given has no effect in the recipe."""
    reasons = {
        "tau": None if recipe.mixture else "mixture is 0",
        "decay_factor": None if recipe.milestones else "there are no milestones",
        **dict.fromkeys(
            ("ndf", "depth"), recipe.backbone and f"backbone {recipe.backbone} has its own"
        ),
    }
    for name in given:
        if reason := reasons.get(name):
            raise ValueError(f"{name} is given, but {reason}; leave --{name.replace('_', '-')} out")


def _run(parsed: argparse.Namespace) -> int:
    summary = pretrain(
        _recipe(parsed),
        name=parsed.name,
        runs_dir=parsed.runs_dir,
        data_dir=parsed.data_dir,
        download=parsed.download,
        skip_bad=parsed.skip_bad,
        max_pixels=parsed.max_pixels,
        labels=parsed.labels,
        init_from=parsed.init_from,
        seed=parsed.seed,
        device=parsed.device,
        workers=parsed.workers,
        tensorboard=parsed.tensorboard,
        tensorboard_port=parsed.tensorboard_port,
        resume=parsed.resume,
        timeout=parsed.timeout,
        progress=parsed.progress,
    )
    if rank_of_environment() != 0:
        return 0
    if summary["interrupted"]:
        print(
            f"stopped after step {summary['step']} of {summary['steps']}; continue with: amdim-fast"
            f" pretrain --resume {summary['folder']}"
        )
    else:
        print(format_summary(summary))
    return 0


def format_summary(summary: dict[str, Any]) -> str:
    """The small table at the end of a run."""
    rows = [
        ("logistic regression, raw pixels", summary.get("accuracy_raw_pixels"), "{:.1%}"),
        ("logistic regression, random weights", summary.get("accuracy_random_weights"), "{:.1%}"),
        ("logistic regression, initial weights", summary.get("accuracy_initial_weights"), "{:.1%}"),
        ("logistic regression, pre-trained", summary.get("accuracy_pretrained"), "{:.1%}"),
        ("training time", summary["train_seconds"], "{:.0f} s"),
        ("training rate", summary["images_per_second"], "{:.0f} images/s"),
        ("peak memory", summary["peak_memory_bytes"] / 1e6, "{:.0f} MB"),
        ("loss backend", summary["loss_backend"], "{}"),
        ("run, with curves.png", summary["folder"], "{}"),
    ]
    shown = [(label, form.format(value)) for label, value, form in rows if value is not None]
    width = max(len(label) for label, _ in shown)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in shown)
