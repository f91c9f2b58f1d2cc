"""The step with components beside the plain one, and its goal."""

from __future__ import annotations

from benchmarks.rows import MISSING, Row, Rows, conditions, quantity, table

GOAL = 1.5
LEAST_USAGE = 50.0


def _steps(rows: Rows) -> dict[str, Row]:
    return {row["provider"]: row for row in rows.named("mixture")}


def mixture_table(rows: Rows) -> str:
    """Time of a training step, and how many plain steps it is."""
    found = _steps(rows)
    if "plain" not in found:
        return f"{MISSING[0].upper()}{MISSING[1:]}."
    plain = found["plain"]["q50"]
    body = [
        [provider, quantity(row["q50"], row["unit"]), f"{row['q50'] / plain:.2f}x"]
        for provider, row in found.items()
    ]
    header = ["", "training step", "of the plain step"]
    return table(header, body) + "\n\n" + conditions(found.values())


def mixture_goals(rows: Rows) -> str:
    """Goals of components against measured values."""
    found = _steps(rows)
    cost = None
    if "plain" in found and "K = 4" in found:
        cost = found["K = 4"]["q50"] / found["plain"]["q50"]
    usage = next((r for r in rows.named("emergence") if r["metric"].startswith("usage")), None)
    share = None if usage is None else float(usage["q50"])
    body = [
        ["training step with K = 4", f"at most {GOAL:g} plain steps"],
        ["entropy of the mean posterior", f"above {LEAST_USAGE:g} % of log K"],
    ]
    body[0] += _judged(cost, "x", cost is not None and cost <= GOAL)
    body[1] += _judged(share, " %", share is not None and share > LEAST_USAGE)
    return table(["", "goal", "measured", ""], body)


def _judged(value: float | None, unit: str, met: bool) -> list[str]:
    if value is None:
        return [MISSING, ""]
    return [f"{value:.3g}{unit}", "met" if met else "not met"]
