"""Images a second of every way to read them, against the goal."""

from __future__ import annotations

from benchmarks.rows import MISSING, Rows, cell, conditions, table

GOAL = 10_000
# Providers that the goal speaks of begin so; it is images a second and core.
GOAL_OF = "packed store"


def data_table(rows: Rows) -> str:
    """One line a provider."""
    found = rows.named("data")
    if not found:
        return f"{MISSING[0].upper()}{MISSING[1:]}."
    body = []
    for row in found:
        goal = ["", ""]
        if row["provider"].startswith(GOAL_OF):
            goal = [f"{GOAL:,} or more", "met" if row["q50"] >= GOAL else "not met"]
        body.append([row["provider"], cell(row), *goal])
    return table(["", "one core", "goal", ""], body) + "\n\n" + conditions(found)
