"""Bars: views a second of every provider, a panel for each size of image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.augment_table import CPU_CASES
from benchmarks.plot import COLOURS, Plot, bare
from benchmarks.rows import Row, Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL_CORES = "-all-cores"


def _case(row: Row) -> str:
    return str(row["case"]).removesuffix(ALL_CORES)


def _select(rows: Rows) -> list[Row]:
    found = [
        row for row in rows.named("augment") if _case(row) in CPU_CASES and row["metric"] == "rate"
    ]
    return found if {_case(row) for row in found} == set(CPU_CASES) else []


def _paint(figure: Figure, rows: list[Row]) -> None:
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    axes = figure.subplots(1, len(CPU_CASES), sharey=True)
    for axis, (case, title) in zip(axes, CPU_CASES.items(), strict=True):
        rates = {
            row["provider"]: row["q50"] * row["shapes"]["views"]
            for row in rows
            if _case(row) == case
        }
        shown = [provider for provider in providers if provider in rates]
        colours = [COLOURS["ours" if p.startswith("amdim_fast") else "original"] for p in shown]
        bars = axis.barh(shown, [rates[provider] for provider in shown], color=colours)
        axis.bar_label(bars, [f" {rates[provider]:,.0f}" for provider in shown])
        bare(axis, title=f"{title}, views a second", xlim=(0, 1.25 * max(rates.values())))
    axes[0].invert_yaxis()


VIEW_BARS = Plot(
    "views_cpu.png",
    "Views a second of amdim_fast and of torchvision, for two sizes of image",
    (9, 2.2),
    _select,
    _paint,
)
