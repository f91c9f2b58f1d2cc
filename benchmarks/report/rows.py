"""Where rows are read, and their text: cells, tables and the line of conditions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.sources import stale

MISSING = "not yet measured"
NO_ROWS = "Not yet measured."
MARK = "†"
STALE = f"{MARK} measured on older code."
SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "bytes": ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")),
    "ms": ((3.6e6, " h"), (1e3, " s"), (1.0, " ms")),
    "%": ((1.0, " %"),),
}

Row = Mapping[str, Any]


class Rows:
    """The newest row of each condition, of the newest device and torch of its case.

    On GPUs all cases of a bench are of one card and torch. Rows of older ones are left aside, so
    that no table mixes two machines; ``on`` has those of another card or CPU. ``compiled`` are the
    rows of the ahead-of-time check, which have no time.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self.compiled = [row for row in rows if "time" not in row]
        self._all = sorted((row for row in rows if "time" in row), key=lambda row: str(row["time"]))
        newest_on = {_machines(row): _measured_on(row) for row in self._all}
        newest: dict[tuple[Any, ...], Row] = {}
        for row in self._all:
            case = (row["name"], row.get("case"))
            if _measured_on(row) == newest_on[_machines(row)]:
                newest[(*case, row["provider"], row.get("mode"), row["metric"])] = row
        self._rows = list(newest.values())

    def on(self, *words: str) -> Rows:
        """Those of one card or CPU, by words of its name and instruction set, such as H100."""

        def known(row: Row) -> set[str]:
            return set(re.findall(r"\w+", f"{row.get('device')} {row.get('instructions')}"))

        return Rows(row for row in self._all if known(row).issuperset(words))

    def named(self, name: str, **fields: str) -> list[Row]:
        """The rows of one bench that have these fields, oldest first."""
        return [
            row
            for row in self._rows
            if row["name"] == name and all(row.get(key) == fields[key] for key in fields)
        ]

    def find(self, name: str, **fields: str) -> Row | None:
        """The row of one bench that has these fields, or None."""
        return next(iter(self.named(name, **fields)), None)


def _machines(row: Row) -> tuple[Any, ...]:
    """What one device measures: a case or, on a GPU, a bench."""
    case = str(row.get("case"))
    return row["name"], "cuda" if case.startswith("cuda") else case


def _measured_on(row: Row) -> tuple[Any, ...]:
    return row.get("device"), row.get("instructions"), _torch(row)


def _torch(row: Row) -> str:
    return str(row.get("versions", {}).get("torch", ""))


def require_one_machine(rows: Iterable[Row]) -> None:
    """ValueError for several versions of torch or devices, numbers of threads aside."""
    rows = list(rows)
    devices = {re.sub(r", \d+ threads$", "", str(row.get("device"))) for row in rows}
    instructions = {row["instructions"] for row in rows if "instructions" in row}
    for what, found in (
        ("devices", devices),
        ("instruction sets", instructions),
        ("versions of torch", set(map(_torch, rows))),
    ):
        if len(found) > 1:
            cases = ", ".join(sorted({f"{row['name']} {row.get('case')}" for row in rows}))
            raise ValueError(
                f"a table of {cases} mixes {what}: {', '.join(sorted(found))}; "
                "measure all of its cases again on one"
            )


def read_rows(root: Path) -> Rows:
    """Every row under benchmarks/results."""
    files = sorted((root / "benchmarks" / "results").glob("*.jsonl"))
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return Rows(json.loads(line.replace("colours", "colors")) for line in lines)


def quantity(value: float, unit: str) -> str:
    """Three significant digits, in the unit a reader expects."""
    steps = SCALES.get(unit, ((1.0, f" {unit}" if unit else ""),))
    size, label = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    text = f"{value / size:.3g}"
    return (f"{value / size:,.0f}" if "e+" in text else text) + label


def mark(*rows: Row | None) -> str:
    """A dagger for values of which a row was measured on older code."""
    return MARK if any(row is not None and stale(row) for row in rows) else ""


def cell(row: Row | None, baseline: Row | None = None, absent: str = MISSING) -> str:
    """Median of a row, with the factor by which it improves on the baseline, and its mark."""
    if row is None:
        return absent
    text = quantity(row["q50"], row["unit"])
    if baseline is None or baseline is row or row["q50"] <= 0:
        return text + mark(row)
    factor = baseline["q50"] / row["q50"]
    if row["unit"].endswith("/s"):
        factor = 1 / factor
    shown = f"{factor:.0f}" if factor >= 10 else f"{factor:.2g}"
    return f"{text} ({shown}x){mark(row, baseline)}"


def table(header: Iterable[str], body: Iterable[Iterable[str]], rows: Iterable[Row] = ()) -> str:
    """A markdown table, numbers right-aligned, over the conditions of the rows, if any."""
    header, rows = list(header), list(rows)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *body))
    return f"{lines}\n\n{conditions(rows)}" if rows else lines


def conditions(rows: Iterable[Row]) -> str:
    """One line: what was measured, on what, with which versions, how often, and on which code.

    ValueError if the rows are of several machines.
    """
    rows = list(rows)
    require_one_machine(rows)

    def merged(values: Iterable[Any]) -> str:
        return " and ".join(sorted({str(value) for value in values if value not in (None, "")}))

    parts = [
        _shapes(rows),
        merged(row.get("dtype") for row in rows),
        merged(_counted(row) for row in rows if row["n"]),
        merged(row.get("device") for row in rows),
        merged(row.get("instructions") for row in rows),
        merged(
            ", ".join(f"{k} {v}" for k, v in row.get("versions", {}).items() if v) for row in rows
        ),
        merged(row.get("note") for row in rows if row["metric"] == "time"),
        "commit " + merged(re.sub(r"(\w{10})\w*", r"\1", row["commit"]) for row in rows),
        merged(str(row["time"])[:10] for row in rows),
    ]
    line = "Medians. " + "; ".join(part for part in parts if part) + "."
    return f"{line} {STALE}" if mark(*rows) else line


def _counted(row: Row) -> str:
    """What was measured and how often; by which clock, if the row says so."""
    clock = f" by the {row['clock']} clock" if row.get("clock") else ""
    return f"{row['metric'].replace('_', ' ')}{clock} n = {row['n']}"


def _shapes(rows: list[Row]) -> str:
    """The values that each size takes, from the smallest to the largest."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.get("shapes", {}).items():
            values.setdefault(key, set()).add(str(value))
    taken = {
        key: sorted(found, key=lambda text: (len(text), text)) for key, found in values.items()
    }
    return "; ".join(f"{key} = {', '.join(found)}" for key, found in taken.items())
