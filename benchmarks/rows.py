"""Rows of the results, and their text: cells, tables and the line of conditions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.sources import stale

MISSING = "not yet measured"
NO_ROWS = "Not yet measured."
MARK = "†"
STALE = f"{MARK} measured on older code."
SMALL, LARGE, GPU = "cpu-b480-d1024-float32", "cpu-b4096-d256-float32", "cuda-b1024-d2048-bfloat16"
METHODS = {
    "reference": "original algorithm",
    "reference_compiled": "the same, torch.compile",
    "torch": "amdim_fast",
    "torch_recompute": "amdim_fast, recompute plan",
}
FLOORS = {
    "gemms": "matrix products alone, torch.mm",
    "gemms_onednn": "matrix products alone, oneDNN",
}
COLUMNS = {
    "forward + backward": ("forward_backward", "time"),
    "forward, no_grad": ("forward", "time"),
    "extra peak memory": ("forward_backward", "extra_peak_memory"),
}

Row = Mapping[str, Any]


class Rows:
    """The newest row of each condition, of the newest device of its case.

    Rows of older devices are left aside, so that no table mixes two machines. ``compiled`` are the
    rows of the ahead-of-time gate, which have no time.
    """

    def __init__(self, rows: Iterable[Row], compiled: Iterable[Row] = ()) -> None:
        self.compiled = list(compiled)
        ordered = sorted(rows, key=lambda row: str(row["time"]))
        device = {(row["name"], row.get("case")): row.get("device") for row in ordered}
        self._newest: dict[tuple[Any, ...], Row] = {}
        for row in ordered:
            group = (row["name"], row.get("case"))
            if row.get("device") == device[group]:
                key = (*group, row["provider"], row.get("mode"), row["metric"])
                self._newest[key] = row

    def find(self, case: str, provider: str, mode: str, metric: str) -> Row | None:
        """The row of the contrastive bench, or None."""
        return self._newest.get(("nce", case, provider, mode, metric))

    def named(self, name: str) -> list[Row]:
        """All rows of one bench, oldest first."""
        return [row for key, row in self._newest.items() if key[0] == name]


def read_rows(root: Path) -> Rows:
    """Every row under benchmarks/results."""
    files = sorted((root / "benchmarks" / "results").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return Rows((row for row in rows if "time" in row), (row for row in rows if "time" not in row))


def quantity(value: float, unit: str) -> str:
    """Three significant digits, in the unit a reader expects."""
    scales: dict[str, tuple[tuple[float, str], ...]] = {
        "bytes": ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")),
        "ms": ((1e3, " s"), (1.0, " ms")),
        "%": ((1.0, " %"),),
    }
    steps = scales.get(unit, ((1.0, f" {unit}" if unit else ""),))
    size, label = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    text = f"{value / size:.3g}"
    return (f"{value / size:,.0f}" if "e+" in text else text) + label


def mark(*rows: Row | None) -> str:
    """A dagger for values of which a row was measured on older code."""
    return MARK if any(row is not None and stale(row) for row in rows) else ""


def cell(row: Row | None, baseline: Row | None = None) -> str:
    """Median of a row, with the factor by which it improves on the baseline, and its mark."""
    if row is None:
        return MISSING
    text = quantity(row["q50"], row["unit"])
    if baseline is None or baseline is row or row["q50"] <= 0:
        return text + mark(row)
    factor = baseline["q50"] / row["q50"]
    if row["unit"].endswith("/s"):
        factor = 1 / factor
    return f"{text} ({factor:.2g}x){mark(row, baseline)}"


def conditions(rows: Iterable[Row]) -> str:
    """One line: what was measured, on what, with which versions, how often, and on which code."""
    rows = [row for row in rows if row]
    if not rows:
        return f"Conditions: {MISSING}."

    def merged(values: Iterable[Any]) -> str:
        return " and ".join(sorted({str(value) for value in values if value not in (None, "")}))

    parts = [
        _shapes(rows),
        merged(row.get("dtype") for row in rows),
        merged(f"{row['metric'].replace('_', ' ')} n = {row['n']}" for row in rows if row["n"]),
        merged(row.get("device") for row in rows),
        merged(
            ", ".join(f"{k} {v}" for k, v in row.get("versions", {}).items() if v) for row in rows
        ),
        merged(row.get("note") for row in rows if row["metric"] == "time"),
        "commit " + merged(_short(str(row.get("commit", "unknown"))) for row in rows),
        merged(str(row["time"])[:10] for row in rows),
    ]
    line = "Medians. " + "; ".join(part for part in parts if part) + "."
    return f"{line} {STALE}" if mark(*rows) else line


def _shapes(rows: list[Row]) -> str:
    """All sizes in words; of more than three, the values each letter takes."""
    found = [row.get("shapes", {}) for row in rows]
    whole = {", ".join(f"{k} = {v}" for k, v in shapes.items()) for shapes in found}
    if len(whole) <= 3:
        return " and ".join(sorted(whole - {""}))
    values: dict[str, dict[str, Any]] = {}
    for key, value in (pair for shapes in found for pair in shapes.items()):
        values.setdefault(key, {})[str(value)] = value
    numbers = {
        key: [str(value) for value in sorted(taken.values(), key=_by_size)]
        for key, taken in values.items()
    }
    return "; ".join(f"{key} = {', '.join(taken)}" for key, taken in numbers.items())


def _by_size(value: Any) -> tuple[float, str]:
    return (float(value) if isinstance(value, (int, float)) else 0.0, str(value))


def _short(commit: str) -> str:
    head, dash, dirty = commit.partition("-")
    return head[:10] + dash + dirty


def table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A markdown table, numbers right-aligned."""
    header = list(header)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *body))


def verdict(met: bool) -> str:
    """The last cell of a goal."""
    return "met" if met else "not met"


def judged_row(row: Row | None, met: Callable[[float], bool]) -> list[str]:
    """The last two cells of a goal that one row's median meets or misses."""
    return [cell(row), "" if row is None else verdict(met(row["q50"]))]


def judged(value: float | None, unit: str, met: bool, *rows: Row | None) -> list[str]:
    """The last two cells of a goal: the value, marked where a row is old, and the verdict."""
    if value is None:
        return [MISSING, ""]
    return [f"{value:.3g}{unit}{mark(*rows)}", verdict(met)]
