"""Goals of a whole training step against measured values."""

from __future__ import annotations

from benchmarks.rows import Rows, judged, table

GOAL = 1.5
MOST_DATA = 15.0


def step_goals(rows: Rows) -> str:
    """The digits recipe on a CPU: times the first version's speed, and the share of data."""
    found = {
        (row["provider"], row["metric"]): row
        for row in rows.named("train_step")
        if row["case"] == "cpu-digits"
    }
    first = found.get(("first version", "time"))
    body = []
    for label, provider in (
        ("precision auto", "amdim_fast"),
        ("float32", "amdim_fast, float32"),
    ):
        own = found.get((provider, "time"))
        factor = first["q50"] / own["q50"] if first and own else None
        met = factor is not None and factor >= GOAL
        goal = f"{GOAL:g}x the first version's speed or more"
        body.append([f"digits, {label}", goal, *judged(factor, "x", met, first, own)])
    row = found.get(("amdim_fast", "data_and_views"))
    share = None if row is None else float(row["q50"])
    met = share is not None and share < MOST_DATA
    goal = f"under {MOST_DATA:g} %"
    body.append(["digits, data and views", goal, *judged(share, " %", met, row)])
    return table(["", "goal", "measured", ""], body)
