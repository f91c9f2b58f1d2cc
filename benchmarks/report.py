"""Render committed rows into tables and a plot; nothing is written here that has no row.

    python -m benchmarks.report            rewrite the marked blocks of the documents, and the plot
    python -m benchmarks.report --check    exit 1 where they disagree with the rows

A block lies between ``<!-- report:NAME -->`` and ``<!-- /report:NAME -->``; BLOCKS has the names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "benchmarks/NOTES.md")
REQUIRED = {"README.md": ("nce_headline",), "benchmarks/NOTES.md": ("nce_goals",)}
PLOT = Path("benchmarks/plots/nce_cpu.png")
MISSING = "not yet measured"
MARKED = re.compile(r"<!-- report:(?P<name>\w+) -->\n(?P<body>.*?)<!-- /report:(?P=name) -->", re.S)

SMALL, LARGE, GPU = "cpu-b480-d1024-float32", "cpu-b4096-d256-float32", "cuda-b480-d1024-float32"
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

    Rows of older devices are left aside, so that no table mixes two machines.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
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
    """Every timed row under benchmarks/results; those of ``benchmarks/aot.py`` have no time."""
    files = sorted((root / "benchmarks" / "results").glob("*.jsonl"))
    lines = (line for file in files for line in file.read_text().splitlines())
    return Rows(row for row in map(json.loads, lines) if "time" in row)


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
    return (f"{value / size:,.0f}" if "e" in text else text) + label


def cell(row: Row | None, baseline: Row | None = None) -> str:
    """Median of a row, with the factor by which it improves on the baseline."""
    if row is None:
        return MISSING
    text = quantity(row["q50"], row["unit"])
    if baseline is None or baseline is row or row["q50"] <= 0:
        return text
    return f"{text} ({baseline['q50'] / row['q50']:.2g}x)"


def conditions(rows: Iterable[Row]) -> str:
    """One line: what was measured, on what, with which versions, how often."""
    rows = [row for row in rows if row]
    if not rows:
        return f"Conditions: {MISSING}."

    def merged(values: Iterable[Any]) -> str:
        return " and ".join(sorted({str(value) for value in values if value not in (None, "")}))

    parts = [
        merged(", ".join(f"{k} = {v}" for k, v in row.get("shapes", {}).items()) for row in rows),
        merged(row.get("dtype") for row in rows),
        merged(f"{row['metric'].replace('_', ' ')} n = {row['n']}" for row in rows if row["n"]),
        merged(row.get("device") for row in rows),
        merged(
            ", ".join(f"{k} {v}" for k, v in row.get("versions", {}).items() if v) for row in rows
        ),
        "commit " + merged(_short(str(row.get("commit", "unknown"))) for row in rows),
        merged(str(row["time"])[:10] for row in rows),
    ]
    return "Medians. " + "; ".join(part for part in parts if part) + "."


def _short(commit: str) -> str:
    head, dash, dirty = commit.partition("-")
    return head[:10] + dash + dirty


def table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A markdown table, numbers right-aligned."""
    header = list(header)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *body))


def nce_table(rows: Rows, case: str, providers: Mapping[str, str]) -> str:
    """Methods against time and memory of one case, factors against the original algorithm."""
    used: list[Row] = []
    body = []
    for provider, label in providers.items():
        line = [label]
        for mode, metric in COLUMNS.values():
            if provider in FLOORS and metric != "time":
                line.append("")
                continue
            row = rows.find(case, provider, mode, metric)
            line.append(cell(row, rows.find(case, "reference", mode, metric)))
            used += [row] if row else []
        body.append(line)
    return table(["", *COLUMNS], body) + "\n\n" + conditions(used)


def nce_large(rows: Rows) -> str:
    """The case whose scores the original's algorithm could not hold."""
    time, memory, stored = (
        rows.find(LARGE, provider, "forward_backward", metric)
        for provider, metric in (
            ("torch", "time"),
            ("torch", "extra_peak_memory"),
            ("reference", "calculated_bytes"),
        )
    )
    lines = table(
        ["", "forward + backward", "extra peak memory"],
        [
            [METHODS["reference"], "", f"{cell(stored)}{' (calculated)' if stored else ''}"],
            [METHODS["torch"], cell(time), cell(memory)],
        ],
    )
    return lines + "\n\n" + conditions(row for row in (time, memory, stored) if row)


def nce_goals(rows: Rows) -> str:
    """Goals against measured values."""
    both, forward = "forward_backward", "forward"

    def factor(mode: str, metric: str, provider: str) -> float | None:
        ours, original = (rows.find(SMALL, p, mode, metric) for p in (provider, "reference"))
        return original["q50"] / ours["q50"] if ours and original else None

    large = rows.find(LARGE, "torch", both, "extra_peak_memory")
    large_bytes = None if large is None else float(large["q50"])
    memory = factor(both, "extra_peak_memory", "torch_recompute")
    goals = [
        ("forward + backward at B = 480", "1.7x or more", factor(both, "time", "torch"), 1.7),
        ("forward under no_grad at B = 480", "3x or more", factor(forward, "time", "torch"), 3.0),
        ("recompute plan's extra peak memory at B = 480", "10x less or better", memory, 10.0),
    ]
    body = [
        [name, goal, *((MISSING, "") if value is None else (f"{value:.2f}x", _met(value >= least)))]
        for name, goal, value, least in goals
    ]
    limit = ["extra peak memory at B = 4096", "under 1 GB"]
    met = "" if large_bytes is None else _met(large_bytes < 1e9)
    return table(["", "goal", "measured", ""], [*body, [*limit, cell(large), met]])


def _met(condition: bool) -> str:
    return "met" if condition else "not met"


def small_table(rows: Rows, name: str) -> str:
    """Any bench as providers against metrics, in the order of their rows."""
    found = rows.named(name)
    if not found:
        return f"{MISSING[0].upper()}{MISSING[1:]}."
    metrics = list(dict.fromkeys(row["metric"] for row in found))
    providers = list(dict.fromkeys(row["provider"] for row in found))
    cells = {(row["provider"], row["metric"]): row for row in found}
    body = [[p, *(cell(cells.get((p, m))) for m in metrics)] for p in providers]
    header = ["", *(metric.replace("_", " ") for metric in metrics)]
    return table(header, body) + "\n\n" + conditions(found)


BLOCKS: dict[str, Callable[[Rows], str]] = {
    "nce_headline": lambda rows: nce_table(rows, SMALL, METHODS),
    "nce_floors": lambda rows: nce_table(rows, SMALL, METHODS | FLOORS),
    "nce_gpu": lambda rows: nce_table(rows, GPU, METHODS),
    "nce_large": nce_large,
    "nce_goals": nce_goals,
    "demo": lambda rows: small_table(rows, "demo"),
}


def rendered(text: str, rows: Rows) -> str:
    """``text`` with every marked block made from the rows; KeyError for an unknown name."""
    return MARKED.sub(
        lambda match: (
            f"<!-- report:{match['name']} -->\n{BLOCKS[match['name']](rows)}\n"
            f"<!-- /report:{match['name']} -->"
        ),
        text,
    )


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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(11, 2.4), sharey=True)
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        labels, values = zip(*bars, strict=True)
        drawn = axis.barh(labels, values, color=["#9aa5b1", "#9aa5b1", "#2f6f9f", "#2f6f9f"])
        unit = title.rsplit("(", 1)[1].rstrip(")")
        axis.bar_label(drawn, [f" {quantity(value, unit)}" for value in values])
        axis.set(xscale="log", title=title, xlim=(min(values) / 2, max(values) * 6))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Software": None, "Rows": plot_digest(rows)}
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata=metadata)
    pyplot.close(figure)


def disagreements(root: Path) -> list[str]:
    """What ``--check`` prints: blocks or the plot that are missing or not what the rows say."""
    rows = read_rows(root)
    problems = []
    for document in DOCUMENTS:
        text = (root / document).read_text()
        names = {match["name"] for match in MARKED.finditer(text)}
        missing = sorted(set(REQUIRED[document]) - names)
        problems += [f"{document} has no block {name}" for name in missing]
        unknown = sorted(names - BLOCKS.keys())
        problems += [f"{document} has an unknown block {name}" for name in unknown]
        if not unknown and rendered(text, rows) != text:
            problems.append(f"{document} disagrees with the rows; run python -m benchmarks.report")
    plot = root / PLOT
    drawn = plot.read_bytes() if plot.exists() else b""
    if bool(drawn) != bool(plotted_rows(rows)) or (
        drawn and plot_digest(rows).encode() not in drawn
    ):
        problems.append(f"{PLOT} was not drawn from the rows; run python -m benchmarks.report")
    return problems


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Rewrite or check; 1 if the check finds a disagreement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 on disagreement"
    )
    if parser.parse_args(arguments).check:
        problems = disagreements(root)
        print("\n".join(problems) or "documents agree with the rows")
        return 1 if problems else 0
    rows = read_rows(root)
    for document in DOCUMENTS:
        path = root / document
        path.write_text(rendered(path.read_text(), rows))
    draw_plot(rows, root / PLOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
