"""Curves: time and memory of forward + backward against B."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.nce_providers import FORWARD_BACKWARD, RECOMPUTE_BUDGET
from benchmarks.plot import COLOURS, Plot, bare, of_one_machine
from benchmarks.rows import METHODS, Row, Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES = re.compile(r"cpu-b\d+-d1024-float32")
LEAST_POINTS = 4
# Small batches fit that budget whole: there it is no recompute plan.
CURVES = {
    "reference": (METHODS["reference"], "original"),
    "torch": (METHODS["torch"], "ours"),
    "torch_recompute": (f"amdim_fast, {RECOMPUTE_BUDGET // 2**20} MiB", "ours, recomputing"),
}
PANELS = {
    "time": ("forward + backward", "s", 1e3),
    "extra_peak_memory": ("extra peak memory", "MB", 1e6),
}


def _select(rows: Rows) -> list[Row]:
    found = of_one_machine(
        [
            row
            for row in rows.named("nce")
            if CASES.fullmatch(row["case"])
            and row["provider"] in CURVES
            and row["mode"] == FORWARD_BACKWARD
            and row["metric"] in PANELS
        ]
    )
    return found if len({row["shapes"]["B"] for row in found}) >= LEAST_POINTS else []


def _paint(figure: Figure, rows: list[Row]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.subplots(1, len(PANELS))
    for axis, (metric, (title, unit, scale)) in zip(axes, PANELS.items(), strict=True):
        for provider, (label, colour) in CURVES.items():
            points = sorted(
                (row["shapes"]["B"], row["q50"] / scale)
                for row in rows
                if row["provider"] == provider and row["metric"] == metric
            )
            axis.plot(*zip(*points, strict=True), "o-", label=label, color=COLOURS[colour])
        bare(axis, xscale="log", yscale="log", title=title, xlabel="B", ylabel=unit)
        sizes = sorted({row["shapes"]["B"] for row in rows})
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend(frameon=False)


BATCH_CURVES = Plot(
    "nce_batch_cpu.png",
    "Time and extra peak memory of forward + backward against B, on logarithmic axes",
    (8, 3.2),
    _select,
    _paint,
)
