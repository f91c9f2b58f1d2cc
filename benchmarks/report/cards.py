"""What a card was measured at: errors and speed of the loss, whole runs, verdicts of the suite."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.gpu import SUITE, grid
from benchmarks.gpu.steps import CASES, OURS, recipe_seconds
from benchmarks.harness import WALL
from benchmarks.nce_providers import FORWARD_BACKWARD, PEERS
from benchmarks.report.rows import MISSING, NO_ROWS, Row, Rows, cell, mark, quantity, table
from benchmarks.report.steps import fastest
from benchmarks.report.tables import ON_CARD, ON_GPU

# In names of blocks -> as the driver calls it. Those that nobody has run have empty tables.
CARDS = {"h100": "H100", "h200": "H200", "b200": "B200"}
GENERAL = "triton"
SHOWN = (*PEERS, grid.OURS, GENERAL, "triton_least", grid.LIMBS)
SPEED = {
    "time": "time",
    "device_time": "device alone",
    "host_time": "host",
    "launches": "launches",
    "extra_peak_memory": "extra memory",
}
COMPARED = ("time", "extra_peak_memory")
ERRORS = ("value_error", "gradient_error")


def _found(rows: Rows, case: str, provider: str, metrics: Iterable[str]) -> list[Row | None]:
    key = {"case": case, "provider": provider, "mode": FORWARD_BACKWARD}
    return [rows.find("nce", metric=metric, **key) for metric in metrics]


def loss(rows: Rows, card: str) -> str:
    """Forward + backward by batch size, factors against the original; then peak and largest batch.

    A size without rows has one line; columns without rows are named below. Time is wall where all
    rows say so; those of before rows named a clock leave it open. The loss for any upstream stands
    where ours for one objective has no row.
    """
    rows, body = rows.on(card), []
    used: list[Row] = []
    for images, width, dtype in sorted(grid.GRID, key=lambda point: (point[2], *point[:2])):
        case, size = grid.grid_key(images, width, dtype), [str(images), str(width), dtype]
        bases = dict(zip(SPEED, _found(rows, case, PEERS[0], SPEED), strict=True))
        lines: list[list[str]] = []
        for provider in SHOWN:
            found = dict(zip(SPEED, _found(rows, case, provider, SPEED), strict=True))
            ours_stands = any(line[0] == ON_GPU[grid.OURS] for line in lines)
            if found["time"] is None or (provider == GENERAL and ours_stands):
                continue
            cells = [cell(r, bases[m] if m in COMPARED else None, "") for m, r in found.items()]
            lines.append([ON_GPU[provider], *size, *cells])
            used += [row for row in found.values() if row]
        body += lines or [[ON_GPU[grid.OURS], *size, MISSING, *[""] * (len(SPEED) - 1)]]
    if not used:
        return NO_ROWS
    header = ["", "B", "D", "type", *SPEED.values()]
    if all(row.get("clock") == WALL for row in used if row["metric"] == "time"):
        header[4] = WALL
    empty = [title for title in header[4:] if not any(line[header.index(title)] for line in body)]
    shown = [index for index, title in enumerate(header) if title not in empty]
    body = [[line[index] for index in shown] for line in body]
    said = f" {', '.join(empty).capitalize()}: {MISSING}." if empty else ""
    return f"{table([header[i] for i in shown], body, used)}\n\n{_limits(rows)}{said}"


def _limits(rows: Rows) -> str:
    """What the card multiplies at most, and the largest batch of the loss that ran."""
    peaks = [
        f"{cell(rows.find('nce', case=grid.peak_key(dtype), metric='rate'))} in {dtype}"
        for dtype in ("bfloat16", "float32")
    ]
    images, time = (
        rows.find("nce", case=grid.LARGEST_CASE, metric=m) for m in ("largest_batch", "time")
    )
    ran = f"{cell(images)} in {cell(time)}" if images else MISSING
    width = grid.LARGEST_WIDTH
    return f"Product peak: {' and '.join(peaks)}. Largest batch at D = {width} in bfloat16: {ran}."


def errors(rows: Rows) -> str:
    """Largest relative errors against float64, of the values and of the gradients."""
    body: list[list[str]] = []
    used: list[Row] = []
    for provider in SHOWN:
        line = [ON_GPU[provider]]
        for case in ON_CARD.values():
            found = [row for row in _found(rows, case, provider, ERRORS) if row]
            used += found
            line.append(", ".join(map(cell, found)) or MISSING)
        if any(text != MISSING for text in line[1:]):
            body.append(line)
    return table(["", *ON_CARD], body, used) if body else NO_ROWS


def whole_runs(rows: Rows) -> str:
    """How long each recipe takes at the rate of our fastest way, reading of files aside."""
    body, used = [], []
    for name, case in CASES.items():
        if (rate := fastest(rows, name)) is None:
            continue
        recipe = case.recipe
        length = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.epochs} epochs"
        taken = quantity(1e3 * recipe_seconds(case, rate["q50"]), "ms") + mark(rate)
        how = rate["provider"].removeprefix(OURS).lstrip(", ") or "eager"
        body.append([f"{name}, {how}", f"{case.images:,}", length, cell(rate), taken])
        used.append(rate)
    header = ["", "images", "length", "rate", "whole run, calculated"]
    return table(header, body, used) if body else NO_ROWS


def verdicts(rows: Rows) -> str:
    """What each part of ``make gpu`` said last, and how long it took."""
    found = rows.named(SUITE)
    body = [[row["provider"], row["note"] + mark(row), cell(row)] for row in found]
    return table(["", "verdict", "time"], body, found) if body else NO_ROWS
