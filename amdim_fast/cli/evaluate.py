"""``amdim-fast evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
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
from amdim_fast.evaluation.evaluate import evaluate
from amdim_fast.evaluation.probe_training import SCHEDULES, ProbeSchedule
from amdim_fast.evaluation.scoring import METHODS, EvaluationOptions

GIB = 1 << 30
LARGEST_MEMORY = 1 << 32  # GiB


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "evaluate",
        help="evaluate a frozen encoder on a labeled data set",
        description="Evaluate the frozen encoder of a checkpoint, ours or the original's, or of an"
        " export; every test image counts.",
        formatter_class=DefaultsFormatter,
    )
    command.set_defaults(run=_run, makes_views=True)
    default = EvaluationOptions()
    command.add_argument("model", metavar="MODEL", help="checkpoint file or folder of an export")
    command.add_argument(
        "--data", choices=DATA_SETS, default="digits", metavar="NAME", help=", ".join(DATA_SETS)
    )
    command.add_argument(
        "--data-dir",
        default="data",
        help=f"the data set's files: {IMAGES}, or a packed store",
    )
    command.add_argument("--download", action="store_true", help="fetch what is missing there")
    add_skip_bad(command)
    add_max_pixels(command)
    add_test_policy(command)
    command.add_argument(
        "--out", type=Path, default=Path("evaluation"), help="folder to create for the results"
    )
    command.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        help=f"of {', '.join(METHODS)}; probes are linear and MLP, stored are the file's own;"
        " if not given, probes, knn and, up to 20,000 training images, logistic",
    )
    command.add_argument(
        "--probe-epochs",
        type=int,
        metavar="EPOCHS",
        help="passes over the training features; milestones scale with them; if not given,"
        f" {ProbeSchedule().epochs}, imagenet {SCHEDULES['imagenet'].epochs}, places205"
        f" {SCHEDULES['places205'].epochs}",
    )
    command.add_argument("--knn-k", type=int, default=default.k, help="neighbours that vote")
    command.add_argument(
        "--knn-temperature",
        type=float,
        default=default.temperature,
        help="temperature of their votes, in units of cosine similarity",
    )
    command.add_argument(
        "--transductive-bn",
        action="store_true",
        help="first move BatchNorm statistics toward the test images, as the original does; this"
        " inflates accuracy",
    )
    command.add_argument(
        "--batch-size", type=int, default=default.batch_size, help="images encoded at a time"
    )
    command.add_argument(
        "--workers",
        type=int,
        help="processes that decode files, 0 for none; one per CPU if not given",
    )
    command.add_argument(
        "--feature-memory",
        type=float,
        default=default.feature_memory / GIB,
        metavar="GIB",
        help="memory that features may take, in GiB",
    )
    command.add_argument("--seed", type=int, default=default.seed, help="seed of the probes")
    add_no_progress(command)
    command.add_argument(
        "--device",
        help="where the encoder and the probes run, cpu or cuda; if not given, cuda where torch"
        " finds a GPU",
    )


def _run(parsed: argparse.Namespace) -> int:
    if not 0 <= parsed.feature_memory < LARGEST_MEMORY:
        raise ValueError(
            f"--feature-memory is {parsed.feature_memory}; it must be a number of GiB, 0 or more"
            f" and below {LARGEST_MEMORY:,}"
        )
    schedule = None
    if parsed.probe_epochs is not None:
        schedule = SCHEDULES.get(parsed.data, ProbeSchedule()).scaled(parsed.probe_epochs)
    options = EvaluationOptions(
        methods=None if parsed.methods is None else tuple(dict.fromkeys(parsed.methods)),
        schedule=schedule,
        k=parsed.knn_k,
        temperature=parsed.knn_temperature,
        transductive_bn=parsed.transductive_bn,
        batch_size=parsed.batch_size,
        workers=parsed.workers,
        feature_memory=int(parsed.feature_memory * GIB),
        seed=parsed.seed,
    )
    result = evaluate(
        parsed.model,
        parsed.data,
        data_dir=parsed.data_dir,
        download=parsed.download,
        skip_bad=parsed.skip_bad,
        max_pixels=parsed.max_pixels,
        policy=parsed.policy,
        options=options,
        out_dir=parsed.out,
        device=parsed.device,
        progress=parsed.progress,
    )
    print(format_result(result))
    return 0


def format_result(result: dict[str, Any]) -> str:
    """The small table at the end of an evaluation."""
    rows = [
        (method.replace("_", " "), f"top-1 {accuracy['top1']:.1%}  top-5 {accuracy['top5']:.1%}")
        for method, accuracy in result["accuracy"].items()
    ]
    rows.append(("test images", f"{result['test_images']:,}"))
    rows.append(("results", result["folder"]))
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}  {value}" for label, value in rows]
    if result["skipped"]:
        lines.append(f"skipped {len(result['skipped']):,} bad images, listed in evaluation.json")
    if result["transductive_bn"]:
        lines.append(
            "transductive: BatchNorm statistics were moved toward the test images before scoring"
        )
    return "\n".join(lines)
