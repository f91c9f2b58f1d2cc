"""What a plot is: rows, and how they are painted; drawn by matplotlib (the extra ``demo``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rows import MISSING, STALE, Row, Rows, conditions, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = Path("benchmarks/plots")
COLOURS = {
    "original": "#9aa5b1",
    "ours": "#2f6f9f",
    "ours, recomputing": "#d08c3f",
    "baseline": "#c3cad1",
}


@dataclass(frozen=True)
class Plot:
    """One image.

    Attributes:
        file: its name in benchmarks/plots.
        alt: what it shows, for those who do not see it.
        size: inches.
        select: the rows it is drawn from; none while there are too few.
        paint: draws these rows, and nothing else, into an empty figure.
        captioned: whether their conditions stand under it; not where a table beside it has them.
    """

    file: str
    alt: str
    size: tuple[float, float]
    select: Callable[[Rows], list[Row]]
    paint: Callable[[Figure, list[Row]], None]
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
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, layout="constrained")
        FigureCanvasAgg(figure)
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


def of_one_machine(rows: list[Row]) -> list[Row]:
    """The rows of the device of the newest one."""
    newest = max(rows, key=lambda row: str(row["time"]), default=None)
    return [] if newest is None else [row for row in rows if row["device"] == newest["device"]]


def bare(axis: Axes, **settings: Any) -> None:
    """Title, labels and scales of an axis without its upper and right border."""
    axis.set(**settings)
    axis.spines[["top", "right"]].set_visible(False)
