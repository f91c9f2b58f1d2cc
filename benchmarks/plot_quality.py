"""Curves: accuracy of the linear probe against steps, and against seconds of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.plot import COLOURS, Plot, bare
from benchmarks.quality_table import OURS, PIXELS, RANDOM, REFERENCE, quality_samples, spread
from benchmarks.rows import Row, Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {REFERENCE: ("original", "s--"), OURS: ("ours", "o-")}
BASELINES = {PIXELS: ":", RANDOM: "-."}


def _select(rows: Rows) -> list[Row]:
    found = quality_samples(rows)
    return rows.named("quality") if all(found[provider] for provider in CURVES) else []


def _paint(figure: Figure, rows: list[Row]) -> None:
    chosen = Rows(rows)
    accuracies, times = quality_samples(chosen), quality_samples(chosen, "training_time")
    axes = figure.subplots(1, 2, sharey=True)
    for provider, (colour, style) in CURVES.items():
        steps = sorted(accuracies[provider])
        means, deviations = zip(*(spread(accuracies[provider][s]) for s in steps), strict=True)
        seconds = [spread(times[provider][step])[0] / 1e3 for step in steps]
        options: dict[str, Any] = {"color": COLOURS[colour], "label": provider, "capsize": 3}
        for axis, x in zip(axes, (steps, seconds), strict=True):
            axis.errorbar(x, means, deviations, fmt=style, **options)
    for provider, style in BASELINES.items():
        values = [value for taken in accuracies[provider].values() for value in taken]
        for axis in axes if values else ():
            axis.axhline(spread(values)[0], color="#555555", linestyle=style, label=provider)
    for axis, label in zip(axes, ("steps", "seconds of training, one thread"), strict=True):
        bare(axis, xlabel=label, xlim=(0, None))
        axis.grid(visible=True, alpha=0.3)
    axes[0].set(ylabel="linear probe (%)")
    axes[0].legend(frameon=False)


QUALITY_CURVES = Plot(
    "quality.png",
    "Accuracy of the linear probe against steps and against seconds of training, of both losses,"
    " mean and standard deviation over seeds",
    (9, 3.4),
    _select,
    _paint,
)
