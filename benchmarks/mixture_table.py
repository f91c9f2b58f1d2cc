"""The step with components beside the plain one, and its goal."""

from __future__ import annotations

from benchmarks.rows import NO_ROWS, Row, Rows, cell, conditions, judged, mark, table

GOAL = 1.5
LEAST_USAGE = 50.0


def _steps(rows: Rows) -> dict[str, Row]:
    return {row["provider"]: row for row in rows.named("mixture")}


def mixture_table(rows: Rows) -> str:
    """Time of a training step, and how many plain steps it is."""
    found = _steps(rows)
    if "plain" not in found:
        return NO_ROWS
    plain = found["plain"]
    body = [
        [provider, cell(row), f"{row['q50'] / plain['q50']:.2f}x{mark(row, plain)}"]
        for provider, row in found.items()
    ]
    header = ["", "training step", "of the plain step"]
    return table(header, body) + "\n\n" + conditions(found.values())


def mixture_goals(rows: Rows) -> str:
    """Goals of components against measured values."""
    found = _steps(rows)
    plain, four = found.get("plain"), found.get("K = 4")
    cost = four["q50"] / plain["q50"] if plain and four else None
    usage = next((r for r in rows.named("emergence") if r["metric"].startswith("usage")), None)
    share = None if usage is None else float(usage["q50"])
    body = [
        ["training step with K = 4", f"at most {GOAL:g} plain steps"],
        ["entropy of the mean posterior", f"above {LEAST_USAGE:g} % of log K"],
    ]
    body[0] += judged(cost, "x", cost is not None and cost <= GOAL, plain, four)
    body[1] += judged(share, " %", share is not None and share > LEAST_USAGE, usage)
    return table(["", "goal", "measured", ""], body)
