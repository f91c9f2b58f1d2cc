"""Bars: time and memory of the methods in the table of the first page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.plot import COLOURS, Plot, bare
from benchmarks.rows import COLUMNS, METHODS, SMALL, Row, Rows, quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = ("torch", "torch_recompute")


def _select(rows: Rows) -> list[Row]:
    panels = [
        [row for provider in METHODS if (row := rows.find(SMALL, provider, mode, metric))]
        for mode, metric in COLUMNS.values()
    ]
    return [row for panel in panels for row in panel] if all(panels) else []


def _paint(figure: Figure, rows: list[Row]) -> None:
    from matplotlib.ticker import NullFormatter

    axes = figure.subplots(1, len(COLUMNS), sharey=True)
    for axis, (title, key) in zip(axes, COLUMNS.items(), strict=True):
        shown = [row for row in rows if (row["mode"], row["metric"]) == key]
        values = [float(row["q50"]) for row in shown]
        colours = [COLOURS["ours" if row["provider"] in OURS else "original"] for row in shown]
        bars = axis.barh([METHODS[row["provider"]] for row in shown], values, color=colours)
        axis.bar_label(bars, [f" {quantity(row['q50'], row['unit'])}" for row in shown])
        title = f"{title} ({shown[0]['unit']})"
        bare(axis, xscale="log", title=title, xlim=(min(values) / 2, max(values) * 6))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].invert_yaxis()


METHOD_BARS = Plot(
    "nce_cpu.png",
    "Time and extra peak memory of the methods in the table",
    (11, 2.4),
    _select,
    _paint,
    captioned=False,
)
