"""Render committed rows into tables and plots; nothing is written here that has no row.

    python -m benchmarks.report            rewrite the marked blocks of the documents, and the plots
    python -m benchmarks.report --check    exit 1 where they disagree with the rows

A block lies between ``<!-- report:NAME -->`` and ``<!-- /report:NAME -->``; BLOCKS has the names.
"""

from __future__ import annotations

import argparse
import os.path
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.aot_table import aot_table
from benchmarks.augment_table import augment_goals, augment_gpu, augment_table
from benchmarks.data_table import data_table
from benchmarks.grid_table import grid_table
from benchmarks.large_table import large_goals
from benchmarks.mixture_table import mixture_goals, mixture_table
from benchmarks.plot import PLOTS
from benchmarks.plot_batch import BATCH_CURVES
from benchmarks.plot_methods import METHOD_BARS
from benchmarks.plot_quality import QUALITY_CURVES
from benchmarks.plot_views import VIEW_BARS
from benchmarks.quality_table import quality_goals, quality_table
from benchmarks.recipe_table import recipe_table
from benchmarks.repository_table import repository_table
from benchmarks.rows import (
    COLUMNS,
    FLOORS,
    GPU,
    LARGE,
    MARK,
    METHODS,
    MISSING,
    NO_ROWS,
    SMALL,
    STALE,
    Row,
    Rows,
    cell,
    conditions,
    judged_row,
    mark,
    read_rows,
    table,
    verdict,
)
from benchmarks.step_table import step_goals
from benchmarks.traffic import traffic_table

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = {
    "README.md": ("nce_headline",),
    "benchmarks/NOTES.md": ("nce_goals", "large_goals"),
    "docs/kernels.md": ("aot",),
    "docs/large_batches.md": ("traffic", "large_digits", "large_gpu"),
    "docs/mixtures.md": ("mixture", "emergence"),
    "docs/recipes.md": ("recipes", "demo"),
}
DOCUMENTS = tuple(REQUIRED)
MARKED = re.compile(r"<!-- report:(?P<name>\w+) -->\n(?P<body>.*?)<!-- /report:(?P=name) -->", re.S)


def nce_table(
    rows: Rows, columns: Mapping[str, tuple[str, str, str]], providers: Mapping[str, str]
) -> str:
    """Methods against columns of (case, mode, metric), with factors against the original."""
    used: list[Row] = []
    body = []
    for provider, label in providers.items():
        line = [label]
        for case, mode, metric in columns.values():
            if provider in FLOORS and metric != "time":
                line.append("")
                continue
            row = rows.find(
                case, ON_GPU.get(provider, provider) if case == GPU else provider, mode, metric
            )
            line.append(cell(row, rows.find(case, "reference", mode, metric)))
            used += [row] if row else []
        body.append(line)
    return table(["", *columns], body) + "\n\n" + conditions(used)


def of_case(case: str) -> dict[str, tuple[str, str, str]]:
    """The columns of one case."""
    return {label: (case, mode, metric) for label, (mode, metric) in COLUMNS.items()}


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

    def factor(mode: str, metric: str, provider: str) -> tuple[float, str] | None:
        ours, original = (rows.find(SMALL, p, mode, metric) for p in (provider, "reference"))
        if ours is None or original is None:
            return None
        return original["q50"] / ours["q50"], mark(ours, original)

    large = rows.find(LARGE, "torch", both, "extra_peak_memory")
    memory = factor(both, "extra_peak_memory", "torch_recompute")
    goals = [
        ("forward + backward at B = 480", "1.7x or more", factor(both, "time", "torch"), 1.7),
        ("forward under no_grad at B = 480", "3x or more", factor(forward, "time", "torch"), 3.0),
        ("extra peak memory of the recompute plan at B = 480", "10x less or better", memory, 10.0),
    ]
    body = [
        [name, goal, *((MISSING, "") if found is None else _factor(*found, least))]
        for name, goal, found, least in goals
    ]
    limit = ["extra peak memory at B = 4096", "under 1 GB"]
    limit += judged_row(large, lambda size: size < 1e9)
    return table(["", "goal", "measured", ""], [*body, limit])


def _factor(value: float, marked: str, least: float) -> tuple[str, str]:
    return f"{value:.2f}x{marked}", verdict(value >= least)


def small_table(rows: Rows, name: str, case: str | None = None) -> str:
    """Any bench as providers against metrics, in the order of their rows; blank without a row."""
    found = [row for row in rows.named(name) if case in (None, row["case"])]
    if not found:
        return NO_ROWS
    metrics = list(dict.fromkeys(row["metric"] for row in found))
    providers = list(dict.fromkeys(row["provider"] for row in found))
    cells = {(row["provider"], row["metric"]): row for row in found}
    body = [
        [p, *(cell(cells[p, m]) if (p, m) in cells else "" for m in metrics)] for p in providers
    ]
    header = ["", *(metric.replace("_", " ") for metric in metrics)]
    return table(header, body) + "\n\n" + conditions(found)


# The GPU column shows the kernels, which users ask for by name so far.
ON_GPU = {"torch": "triton"}
HEADLINE = {
    **of_case(SMALL),
    "forward + backward, GPU": (GPU, "forward_backward", "time"),
}
BLOCKS: dict[str, Callable[[Rows], str]] = {
    "nce_headline": lambda rows: nce_table(rows, HEADLINE, METHODS),
    "nce_floors": lambda rows: nce_table(rows, of_case(SMALL), METHODS | FLOORS),
    "nce_gpu": grid_table,
    "aot": aot_table,
    "nce_large": nce_large,
    "nce_goals": nce_goals,
    "augment": augment_table,
    "augment_gpu": augment_gpu,
    "augment_goals": augment_goals,
    "data": data_table,
    "step_digits": lambda rows: small_table(rows, "train_step", "cpu-digits"),
    "step_goals": step_goals,
    "step_cifar10": lambda rows: small_table(rows, "train_step", "cuda-cifar10"),
    "step_imagenet128": lambda rows: small_table(rows, "train_step", "cuda-imagenet128"),
    "repository": repository_table,
    "demo": lambda rows: small_table(rows, "demo"),
    "quality": quality_table,
    "quality_goals": quality_goals,
    "mixture": mixture_table,
    "mixture_goals": mixture_goals,
    "emergence": lambda rows: small_table(rows, "emergence"),
    "large_goals": large_goals,
    "large_digits": lambda rows: small_table(rows, "large_batch", "cpu-digits"),
    "large_loss": lambda rows: small_table(rows, "large_batch", "cpu-loss"),
    "large_gpu": lambda rows: small_table(rows, "large_batch", "cuda-imagenet128"),
    "recipes": recipe_table,
    "traffic": traffic_table,
    "large_gpu_recipe": lambda rows: small_table(rows, "large_batch", "cuda-imagenet128-recipe"),
}


DRAWN = {
    "nce_plot": METHOD_BARS,
    "nce_batch_plot": BATCH_CURVES,
    "augment_plot": VIEW_BARS,
    "quality_plot": QUALITY_CURVES,
}
BLOCKS |= {name: plot.block for name, plot in DRAWN.items()}


def documents(root: Path) -> list[str]:
    """Files that may have blocks, as paths from the root."""
    pages = sorted((root / "docs").glob("*.md"))
    return ["README.md", "benchmarks/NOTES.md", *(f"docs/{page.name}" for page in pages)]


def rendered(text: str, rows: Rows, document: str = "README.md") -> str:
    """``text`` with every marked block made from the rows; KeyError for an unknown name."""
    plots = Path(os.path.relpath(PLOTS, Path(document).parent)).as_posix()

    def block(match: re.Match[str]) -> str:
        name, body = match["name"], BLOCKS[match["name"]](rows)
        body = body.replace(f"]({PLOTS.as_posix()}/", f"]({plots}/")
        if MARK in body and STALE not in body:
            body += f"\n\n{STALE}"
        return f"<!-- report:{name} -->\n{body}\n<!-- /report:{name} -->"

    return MARKED.sub(block, text)


def disagreements(root: Path) -> list[str]:
    """What ``--check`` prints: blocks or plots that are missing or not what the rows say."""
    rows = read_rows(root)
    problems = []
    for document in documents(root):
        text = (root / document).read_text()
        names = {match["name"] for match in MARKED.finditer(text)}
        missing = sorted(set(REQUIRED.get(document, ())) - names)
        problems += [f"{document} has no block {name}" for name in missing]
        unknown = sorted(names - BLOCKS.keys())
        problems += [f"{document} has an unknown block {name}" for name in unknown]
        if not unknown and rendered(text, rows, document) != text:
            problems.append(f"{document} disagrees with the rows; run python -m benchmarks.report")
    return problems + [
        f"{plot.path} was not drawn from the rows; run python -m benchmarks.report"
        for plot in DRAWN.values()
        if not plot.agrees(rows, root)
    ]


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
    for document in documents(root):
        path = root / document
        path.write_text(rendered(path.read_text(), rows, document))
    for plot in DRAWN.values():
        plot.draw(rows, root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
