"""What a goal is, and how a number is read from the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.report.rows import Row, Rows, quantity


class Value(NamedTuple):
    """What was measured: a number, its text, and the rows that it comes from."""

    number: float
    text: str
    rows: Sequence[Row]


Reader = Callable[[Rows], Value | None]


class Goal(NamedTuple):
    """What is required, what the rows say (None if missing), and how that compares to the limit.

    ``aim`` is a further limit of the same sense, to be reached if possible.
    """

    text: str
    value: Reader
    compare: Callable[[float, float], bool]
    limit: float
    aim: float | None = None

    def on(self, cpu: str) -> Goal:
        """The same of one kind of CPU alone."""
        return self._replace(value=lambda rows: self.value(rows.on(*cpu.split())))


def median(name: str, **fields: str) -> Reader:
    """Of the row of a bench that has these fields."""

    def value(rows: Rows) -> Value | None:
        row = rows.find(name, **fields)
        return Value(row["q50"], quantity(row["q50"], row["unit"]), [row]) if row else None

    return value


def ratio(name: str, over: str, under: str, **fields: str) -> Reader:
    """How many times the median of one provider is that of another."""

    def value(rows: Rows) -> Value | None:
        upper, lower = (rows.find(name, provider=p, **fields) for p in (over, under))
        if upper is None or lower is None:
            return None
        factor = upper["q50"] / lower["q50"]
        shown = f"{factor:.2f}x" if factor >= 0.1 else f"{factor:.2g}x"
        return Value(factor, shown, [upper, lower])

    return value
