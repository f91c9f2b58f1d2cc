"""A comparison as text, as JSON and as a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from amdim_fast.bench.comparison import OURS, REFERENCE, Comparison, Measurement
from amdim_fast.optional import new_figure, png_of, require

JSON_NAME, PNG_NAME = "bench.json", "bench.png"
DRAWING = "drawing the comparison"


def measurement_line(found: Measurement) -> str:
    """One measurement for a terminal."""
    time, memory = f"{found.milliseconds[1]:,.1f} ms", f"{found.extra_bytes / 1e6:,.1f} MB"
    return f"B = {found.images:<6} {found.provider:<11} {time:>12} {memory:>14}  n = {found.rounds}"


def summary(result: Comparison) -> str:
    """The factors at the largest size measured for both, and the largest batch that fits."""
    both = {(m.images, m.provider): m for m in result.measurements}
    images = max(b for b, provider in both if {(b, OURS), (b, REFERENCE)} <= both.keys())
    ours, reference = both[images, OURS], both[images, REFERENCE]
    lines = [f"at B = {images}, reference / {OURS}:"]
    lines[0] += f" time {reference.milliseconds[1] / ours.milliseconds[1]:.2f}"
    if ours.extra_bytes:
        lines[0] += f", extra memory {reference.extra_bytes / ours.extra_bytes:.2f}"
    if result.free is None:
        return "\n".join(
            [*lines, "largest batch: not known, the system does not report its free memory"]
        )
    lines.append(
        f"largest batch of the loss alone in the {result.free / 1e9:.1f} GB free now, calculated"
        f" from the bytes above, not tried: {OURS} {result.largest[OURS]:,},"
        f" {REFERENCE} {result.largest[REFERENCE]:,}"
    )
    return "\n".join(lines)


def as_json(result: Comparison) -> bytes:
    """Every number, with what it means."""
    rows = [
        {
            "B": m.images,
            "provider": m.provider,
            "time_ms": dict(zip(("q20", "q50", "q80"), m.milliseconds, strict=True)),
            "n": m.rounds,
            "extra_memory_bytes": m.extra_bytes,
            "plan": None if m.plan is None else [pairing.mode for pairing in m.plan.pairings],
        }
        for m in result.measurements
    ]
    largest = {"calculated": True, "free_bytes": result.free, **result.largest}
    content = {**result.facts, "measurements": rows, "largest_batch": largest}
    return (json.dumps(content, indent=2) + "\n").encode()


def check_drawing() -> None:
    """Raise unless figures can be drawn.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    require("matplotlib.figure", DRAWING, "demo")


def draw(result: Comparison) -> bytes:
    """PNG: time and extra memory against B, q20 to q80 shaded."""
    figure = new_figure(10, 4, DRAWING)
    time_axis, memory_axis = figure.subplots(1, 2)
    for provider in (REFERENCE, OURS):
        found = [m for m in result.measurements if m.provider == provider]
        sizes = [m.images for m in found]
        low, middle, high = ([m.milliseconds[i] for m in found] for i in range(3))
        (line,) = time_axis.plot(sizes, middle, marker="o", label=provider)
        time_axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        memory_axis.plot(sizes, [m.extra_bytes / 1e6 for m in found], marker="o", label=provider)
    _label(time_axis, "forward + backward, ms", result.measurements)
    _label(memory_axis, "extra peak memory, MB", result.measurements)
    facts = result.facts
    figure.suptitle(f"{facts['device']}; D = {facts['D']}, {facts['dtype']}", parse_math=False)
    return png_of(figure)


def _label(axis: Any, ylabel: str, measurements: Sequence[Measurement]) -> None:
    sizes = sorted({m.images for m in measurements})
    axis.set(xscale="log", yscale="log", xlabel="B, images", ylabel=ylabel)
    axis.set_xticks(sizes, map(str, sizes))
    axis.xaxis.minorticks_off()
    axis.legend()
