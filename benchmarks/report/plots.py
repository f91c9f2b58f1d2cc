"""Plots: the rows that each is drawn from, and how; drawn by matplotlib (the extra ``demo``)."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amdim_fast.optional import new_figure
from benchmarks.bench_augment import ALL_CORES
from benchmarks.nce_providers import FORWARD_BACKWARD
from benchmarks.report.goals import OURS, REFERENCE_LOSS, quality_samples, spread
from benchmarks.report.rows import MISSING, STALE, Row, Rows, conditions, mark, quantity
from benchmarks.report.tables import COLUMNS, CPU_VIEWS, METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = Path("benchmarks/plots")
GRAY, BLUE, ORANGE = "#9aa5b1", "#2f6f9f", "#d08c3f"
# Title -> label -> value and text of a bar.
Panels = dict[str, dict[str, tuple[float, str]]]


@dataclass(frozen=True)
class Plot:
    """One image.

    Attributes:
        select: the rows it is drawn from; none while there are too few.
        paint: draws these rows, and nothing else, into an empty figure.
        file: its name in benchmarks/plots.
        size: inches.
        alt: what it shows, for those who do not see it.
        captioned: whether their conditions stand under it; not where a table beside it has them.
    """

    select: Callable[[Rows], list[Row]]
    paint: Callable[[Figure, list[Row]], None]
    file: str
    size: tuple[float, float]
    alt: str
    captioned: bool = True

    @property
    def path(self) -> Path:
        """Of the image, from the root of the repository."""
        return PLOTS / self.file

    def digest(self, rows: Rows) -> str:
        """Names the rows the plot is drawn from; stored in the file."""
        fields = ("case", "provider", "mode", "metric", "shapes", "unit", "q50")
        drawn = [[row.get(field) for field in fields] for row in self.select(rows)]
        return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]

    def agrees(self, rows: Rows, root: Path) -> bool:
        """Whether the image is drawn from the rows, or absent as they are."""
        path = root / self.path
        if not self.select(rows):
            return not path.exists()
        return path.exists() and self.digest(rows).encode() in path.read_bytes()

    def draw(self, rows: Rows, root: Path) -> None:
        """Write the image unless it is there already; no file without rows."""
        path, found = root / self.path, self.select(rows)
        if not found:
            path.unlink(missing_ok=True)
        if self.agrees(rows, root):
            return
        figure = new_figure(*self.size, "drawing the plots")
        self.paint(figure, found)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, metadata={"Software": None, "Rows": self.digest(rows)})

    def block(self, rows: Rows) -> str:
        """The image, marked and with its conditions, once it has rows."""
        found = self.select(rows)
        if not found:
            return f"Plot: {MISSING}."
        image = f"![{self.alt}]({self.path.as_posix()})"
        if self.captioned:
            return f"{image}{mark(*found)}\n\n{conditions(found)}"
        return f"{image} {STALE}" if mark(*found) else image


def _label(axis: Axes, **settings: Any) -> None:
    """Title, labels and scales of an axis without its upper and right border."""
    axis.set(**settings)
    axis.spines[["top", "right"]].set_visible(False)


def _bars(figure: Figure, panels: Panels, *, log: bool) -> None:
    """Panels of horizontal bars; ours are blue."""
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        values, texts = zip(*bars.values(), strict=True)
        colors = [BLUE if label.startswith(OURS) else GRAY for label in bars]
        axis.bar_label(axis.barh(list(bars), values, color=colors), [f" {text}" for text in texts])
        limits = (min(values) / 2, max(values) * 6) if log else (0, 1.25 * max(values))
        _label(axis, title=title, xscale="log" if log else "linear", xlim=limits)
        axis.xaxis.minorticks_off()
    axes[0].invert_yaxis()


def _select_methods(rows: Rows) -> list[Row]:
    wanted = [
        rows.find("nce", provider=provider, **column._asdict())
        for column in COLUMNS.values()
        for provider in METHODS
    ]
    found = [row for row in wanted if row]
    measured = {(row["mode"], row["metric"]) for row in found}
    return found if len(measured) == len(COLUMNS) else []


def _paint_methods(figure: Figure, rows: list[Row]) -> None:
    panels: Panels = {}
    titles = {(column.mode, column.metric): title for title, column in COLUMNS.items()}
    for row in rows:
        panel = panels.setdefault(f"{titles[row['mode'], row['metric']]} ({row['unit']})", {})
        text = quantity(row["q50"], row["unit"])
        panel[METHODS[row["provider"]]] = float(row["q50"]), text
    _bars(figure, panels, log=True)


LEAST_POINTS = 4
BATCH_CURVES = {
    name: (METHODS[name], color)
    for name, color in (("reference", GRAY), ("torch_objective", BLUE), ("torch_least", ORANGE))
}
BATCH_PANELS = {
    "time": ("forward + backward", "s", 1e3),
    "extra_peak_memory": ("extra peak memory", "MB", 1e6),
}


def _select_batches(rows: Rows) -> list[Row]:
    found = [
        row
        for row in rows.named("nce", mode=FORWARD_BACKWARD)
        if re.fullmatch(r"cpu-b\d+-d1024-float32", row["case"])
        and row["provider"] in BATCH_CURVES
        and row["metric"] in BATCH_PANELS
    ]
    newest = max(found, key=lambda row: str(row["time"]), default=None)
    found = [row for row in found if newest and row["device"] == newest["device"]]
    points = Counter(row["provider"] for row in found if row["metric"] == "time")
    return found if min(points[name] for name in BATCH_CURVES) >= LEAST_POINTS else []


def _paint_batches(figure: Figure, rows: list[Row]) -> None:
    from matplotlib.ticker import LogLocator

    axes = figure.subplots(1, len(BATCH_PANELS))
    for axis, (metric, (title, unit, scale)) in zip(axes, BATCH_PANELS.items(), strict=True):
        for provider, (label, color) in BATCH_CURVES.items():
            points = sorted(
                (row["shapes"]["B"], row["q50"] / scale)
                for row in rows
                if row["provider"] == provider and row["metric"] == metric
            )
            axis.plot(*zip(*points, strict=True), "o-", label=label, color=color)
        _label(axis, xscale="log", yscale="log", title=title, xlabel="B", ylabel=unit)
        sizes = sorted({row["shapes"]["B"] for row in rows})
        axis.set_xticks(sizes, map(str, sizes))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend(frameon=False)


def _view_case(row: Row) -> str:
    return str(row["case"]).removesuffix(ALL_CORES)


def _select_views(rows: Rows) -> list[Row]:
    found = [row for row in rows.named("augment", metric="rate") if _view_case(row) in CPU_VIEWS]
    return found if {_view_case(row) for row in found} == set(CPU_VIEWS) else []


def _paint_views(figure: Figure, rows: list[Row]) -> None:
    panels: Panels = {}
    for row in rows:
        rate = row["q50"] * row["shapes"]["views"]
        panel = panels.setdefault(f"{CPU_VIEWS[_view_case(row)]}, views a second", {})
        panel[row["provider"]] = rate, f"{rate:,.0f}"
    _bars(figure, panels, log=False)


def _select_quality(rows: Rows) -> list[Row]:
    found = quality_samples(rows)
    return rows.named("quality") if found[OURS] and found[REFERENCE_LOSS] else []


def _paint_quality(figure: Figure, rows: list[Row]) -> None:
    accuracies = quality_samples(Rows(rows))
    times = quality_samples(Rows(rows), "training_time")
    axes = figure.subplots(1, 2, sharey=True)
    for provider, color, style in ((REFERENCE_LOSS, GRAY, "s--"), (OURS, BLUE, "o-")):
        steps = sorted(accuracies[provider])
        means, deviations = zip(*(spread(accuracies[provider][s]) for s in steps), strict=True)
        seconds = [spread(times[provider][step])[0] / 1e3 for step in steps]
        options: dict[str, Any] = {"color": color, "label": provider, "capsize": 3}
        for axis, x in zip(axes, (steps, seconds), strict=True):
            axis.errorbar(x, means, deviations, fmt=style, **options)
    for provider, style in (("raw pixels", ":"), ("random weights", "-.")):
        values = accuracies.get(provider, {}).get(0, [])
        for axis in axes if values else ():
            axis.axhline(spread(values)[0], color="#555555", linestyle=style, label=provider)
    for axis, label in zip(axes, ("steps", "seconds of training, one thread"), strict=True):
        _label(axis, xlabel=label, xlim=(0, None))
        axis.grid(visible=True, alpha=0.3)
    axes[0].set(ylabel="linear probe (%)")
    axes[0].legend(frameon=False)


METHODS_ALT = "Time and extra peak memory of the methods in the table"
BATCHES_ALT = "Time and extra peak memory of forward + backward against B, on logarithmic axes"
VIEWS_ALT = "Views a second of amdim_fast and of torchvision, for two sizes of image"
QUALITY_ALT = (
    "Accuracy of the linear probe against steps and against seconds of training, of both losses,"
    " mean and standard deviation over seeds"
)
DRAWN = {
    "nce_plot": Plot(
        *(_select_methods, _paint_methods, "nce_cpu.png", (11, 2.4), METHODS_ALT), captioned=False
    ),
    "nce_batch_plot": Plot(
        _select_batches, _paint_batches, "nce_batch_cpu.png", (8, 3.2), BATCHES_ALT
    ),
    "augment_plot": Plot(_select_views, _paint_views, "views_cpu.png", (9, 2.2), VIEWS_ALT),
    "quality_plot": Plot(_select_quality, _paint_quality, "quality.png", (9, 3.4), QUALITY_ALT),
}
