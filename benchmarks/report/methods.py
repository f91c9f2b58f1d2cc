"""The table of encoders by the method that trained them."""

from __future__ import annotations

from statistics import mean

from benchmarks.bench_methods import METHODS, NAME, SEEDS
from benchmarks.report.rows import MISSING, NO_ROWS, Row, Rows, cell, mark, quantity, table


def methods(rows: Rows) -> str:
    """Accuracy of each seed and their mean, and the mean time of training."""
    if not rows.named(NAME):
        return NO_ROWS
    body, used = [], []
    for method in METHODS:
        probes, times = (
            [rows.find(NAME, provider=f"{method}, seed {seed}", metric=metric) for seed in SEEDS]
            for metric in ("linear_probe", "time")
        )
        line = [method, *map(cell, probes), average(probes)]
        body.append([*line, average(times) if any(times) else ""])
        used += [row for row in (*probes, *times) if row]
    header = ["", *(f"seed {seed}" for seed in SEEDS), "mean", "training time, mean"]
    return table(header, body, used)


def average(found: list[Row | None]) -> str:
    """The mean of the medians, if every row is there."""
    there = [row for row in found if row]
    if len(there) < len(found):
        return MISSING
    return quantity(mean(row["q50"] for row in there), there[0]["unit"]) + mark(*there)
