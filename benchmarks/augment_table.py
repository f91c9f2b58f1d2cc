"""Two views of a batch: providers against cases, and the goals."""

from __future__ import annotations

import operator
from functools import partial

from benchmarks.rows import (
    MISSING,
    NO_ROWS,
    Row,
    Rows,
    cell,
    conditions,
    judged_row,
    mark,
    table,
    verdict,
)

BASELINE = "torchvision on Pillow"
LEAST_FACTOR = 3.0
CPU_CASES = {"cpu-256px-imagenet128": "256² to 128²", "cpu-96px-stl10": "96² to 64²"}
CUDA_CASES = {
    "cuda-256px-imagenet128": "256 of 256² to 128²",
    "cuda-96px-stl10": "256 of 96² to 64²",
    "cuda-32px-cifar": "256 of 32²",
}


def _by_cell(rows: Rows) -> dict[tuple[str, str, str], Row]:
    return {
        (row["case"].removesuffix("-all-cores"), row["provider"], row["metric"]): row
        for row in rows.named("augment")
    }


def _table(rows: Rows, cases: dict[str, str], metric: str) -> str:
    found = _by_cell(rows)
    providers = list(dict.fromkeys(p for case, p, m in found if case in cases and m == metric))
    if not providers:
        return NO_ROWS
    body = []
    for provider in providers:
        line = [provider]
        for case in cases:
            row, base = (found.get((case, p, metric)) for p in (provider, BASELINE))
            line.append(cell(row, base))
        body.append(line)
    used = [row for (case, _, m), row in found.items() if case in cases and m == metric]
    return table(["", *cases.values()], body) + "\n\n" + conditions(used)


def augment_table(rows: Rows) -> str:
    """Images a second on a CPU."""
    return _table(rows, CPU_CASES, "rate")


def augment_gpu(rows: Rows) -> str:
    """Milliseconds a batch on a GPU."""
    return _table(rows, CUDA_CASES, "time")


def augment_goals(rows: Rows) -> str:
    """Goals against measured values."""
    found = _by_cell(rows)
    body = []
    for case, label in CPU_CASES.items():
        own, base = (found.get((case, p, "rate")) for p in ("amdim_fast", BASELINE))
        measured = [MISSING, ""]
        if own and base:
            factor = own["q50"] / base["q50"]
            measured = [
                f"{factor:.2f}x{mark(own, base)}",
                verdict(factor >= LEAST_FACTOR),
            ]
        body.append([f"{label}, one core, against {BASELINE}", "3x or more", *measured])
    for label, goal, case, provider, limit in (
        ("256 of 256² to 128², kernel", "115 us or less", *GPU_GOALS["kernel"]),
        ("256 of 256² to 128², drawing included", "300 us or less", *GPU_GOALS["call"]),
        ("256 of 32², drawing included", "100 us or less", *GPU_GOALS["small"]),
    ):
        row = found.get((case, provider, "time"))
        body.append([label, goal, *judged_row(row, partial(operator.ge, limit))])
    return table(["two views", "goal", "measured", ""], body)


# Case, provider, milliseconds; the kernel's is five times the time of its traffic on an H200.
GPU_GOALS: dict[str, tuple[str, str, float]] = {
    "kernel": ("cuda-256px-imagenet128", "amdim_fast, kernel alone", 0.115),
    "call": ("cuda-256px-imagenet128", "amdim_fast", 0.3),
    "small": ("cuda-32px-cifar", "amdim_fast", 0.1),
}
