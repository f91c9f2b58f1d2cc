"""Goals of large batches in one process."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.bench_large_batch import DIGITS, LOSS, OURS, PROVIDERS, WHOLE
from benchmarks.rows import MISSING, Rows, quantity, table

LOSS_LIMIT, DIGITS_LIMIT = 1e9, 2e9


def large_goals(rows: Rows) -> str:
    """Goals against measured values."""
    found = {
        (row["case"], row["provider"]): float(row["q50"])
        for row in rows.named("large_batch")
        if row["unit"] == "bytes"
    }
    cached = [name for name, changes in PROVIDERS.items() if "micro_batch" in changes]
    peaks = [found.get((DIGITS, name)) for name in (WHOLE, *cached)]
    known = [peak for peak in peaks if peak is not None]
    loss = found.get((LOSS, OURS))
    least = min(known[1:]) if len(known) == len(peaks) else None
    falls = least is not None and all(a > b for a, b in pairwise(known))
    body = [
        ["six costs at B = 8,192, beyond inputs and gradients", "under 1 GB"],
        ["digits at a batch of 4,000, whole process", "under 2 GB"],
        ["its peak memory as the micro-batches shrink", "falls each time"],
    ]
    body[0] += _judged(loss, loss is not None and loss < LOSS_LIMIT)
    body[1] += _judged(least, least is not None and least < DIGITS_LIMIT)
    shown = ", ".join(quantity(peak, "bytes") for peak in known)
    body[2] += [MISSING, ""] if least is None else [shown, "met" if falls else "not met"]
    return table(["", "goal", "measured", ""], body)


def _judged(value: float | None, met: bool) -> list[str]:
    if value is None:
        return [MISSING, ""]
    return [quantity(value, "bytes"), "met" if met else "not met"]
