"""Goals of large batches in one process."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.bench_large_batch import DIGITS, LOSS, OURS, PROVIDERS, WHOLE
from benchmarks.rows import MISSING, Row, Rows, cell, judged_row, table, verdict

LOSS_LIMIT, DIGITS_LIMIT = 1e9, 2e9


def large_goals(rows: Rows) -> str:
    """Goals against measured values."""
    found = {
        (row["case"], row["provider"]): row
        for row in rows.named("large_batch")
        if row["unit"] == "bytes"
    }
    cached = [name for name, changes in PROVIDERS.items() if "micro_batch" in changes]
    peaks = [found.get((DIGITS, name)) for name in (WHOLE, *cached)]
    known = [peak for peak in peaks if peak is not None]
    loss = found.get((LOSS, OURS))
    least = min(known[1:], key=_bytes) if len(known) == len(peaks) else None
    falls = least is not None and all(_bytes(a) > _bytes(b) for a, b in pairwise(known))
    body = [
        ["six costs at B = 8,192, beyond inputs and gradients", "under 1 GB"],
        ["digits at a batch of 4,000, whole process", "under 2 GB"],
        ["its peak memory as the micro-batches shrink", "falls each time"],
    ]
    body[0] += judged_row(loss, lambda size: size < LOSS_LIMIT)
    body[1] += judged_row(least, lambda size: size < DIGITS_LIMIT)
    shown = ", ".join(cell(peak) for peak in known)
    body[2] += [MISSING, ""] if least is None else [shown, verdict(falls)]
    return table(["", "goal", "measured", ""], body)


def _bytes(row: Row) -> float:
    return float(row["q50"])
