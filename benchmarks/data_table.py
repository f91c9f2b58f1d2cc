"""Images a second of every way to read them, against the goal."""

from __future__ import annotations

from benchmarks.rows import NO_ROWS, Rows, cell, conditions, table, verdict

GOAL = 10_000
# Providers that the goal speaks of begin so; it is images a second and core.
GOAL_OF = "packed store"


def data_table(rows: Rows) -> str:
    """One line a provider."""
    found = rows.named("data")
    if not found:
        return NO_ROWS
    body = []
    for row in found:
        goal = ["", ""]
        if row["provider"].startswith(GOAL_OF):
            goal = [f"{GOAL:,} or more", verdict(row["q50"] >= GOAL)]
        body.append([row["provider"], cell(row), *goal])
    return table(["", "one core", "goal", ""], body) + "\n\n" + conditions(found)
