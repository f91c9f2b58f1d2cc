"""The plot of the contrastive bench on a CPU; drawn by matplotlib (the extra ``demo``)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from benchmarks.rows import COLUMNS, METHODS, SMALL, Rows, quantity

PLOT = Path("benchmarks/plots/nce_cpu.png")


def plotted_rows(rows: Rows) -> dict[str, list[tuple[str, float]]]:
    """Bars of the plot: a title with its unit, and (method, value) pairs that have rows."""
    panels = {}
    for title, (mode, metric) in COLUMNS.items():
        found = [(label, rows.find(SMALL, p, mode, metric)) for p, label in METHODS.items()]
        bars = [(label, float(row["q50"])) for label, row in found if row]
        panels[f"{title} ({'ms' if metric == 'time' else 'bytes'})"] = bars
    return panels if all(panels.values()) else {}


def plot_digest(rows: Rows) -> str:
    """Names the rows a plot was drawn from; stored in the file."""
    return hashlib.sha256(json.dumps(plotted_rows(rows)).encode()).hexdigest()[:16]


def draw_plot(rows: Rows, path: Path) -> None:
    """Bars of time and memory on logarithmic axes; no file without rows."""
    panels = plotted_rows(rows)
    if not panels:
        path.unlink(missing_ok=True)
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(11, 2.4))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        labels, values = zip(*bars, strict=True)
        drawn = axis.barh(labels, values, color=["#9aa5b1", "#9aa5b1", "#2f6f9f", "#2f6f9f"])
        unit = title.rsplit("(", 1)[1].rstrip(")")
        axis.bar_label(drawn, [f" {quantity(value, unit)}" for value in values])
        axis.set(xscale="log", title=title, xlim=(min(values) / 2, max(values) * 6))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Software": None, "Rows": plot_digest(rows)}
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata=metadata)
