"""Render committed rows into tables and plots; nothing is written here that has no row.

    python -m benchmarks.report            rewrite the marked blocks of the documents, and the plots
    python -m benchmarks.report --check    exit 1 where they disagree with the rows

A block lies between ``<!-- report:NAME -->`` and ``<!-- /report:NAME -->``; BLOCKS has the names.
"""

from __future__ import annotations

import argparse
import os.path
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import bench_train_step, traffic
from benchmarks.report import cards, tables
from benchmarks.report.goals import GOALS, goal_table
from benchmarks.report.methods import methods
from benchmarks.report.plots import DRAWN, PLOTS
from benchmarks.report.rows import MARK, STALE, Rows, read_rows
from benchmarks.report.steps import steps_table

ROOT = Path(__file__).resolve().parents[2]
MARKED = re.compile(r"<!-- report:(?P<name>\w+) -->\n(?P<body>.*?)<!-- /report:(?P=name) -->", re.S)
STEPS = (bench_train_step.OURS, bench_train_step.FLOAT32)
BLOCKS: dict[str, Callable[[Rows], str]] = {
    **{block: partial(goal_table, block=block) for block in GOALS},
    **{name: plot.block for name, plot in DRAWN.items()},
    "nce_headline": partial(
        tables.nce, columns=tables.COLUMNS, methods=tables.METHODS | tables.FLOORS
    ),
    "nce_headline_gpu": tables.nce_on_card,
    "nce_headline_cpu": tables.nce_on_cpu,
    "nce_gpu": tables.nce_grid,
    **{f"gpu_loss_{name}": partial(cards.loss, card=card) for name, card in cards.CARDS.items()},
    "gpu_errors": cards.errors,
    "gpu_runs": cards.whole_runs,
    "gpu_verdicts": cards.verdicts,
    "nce_large": tables.nce_large,
    "aot": tables.compiled,
    "augment": partial(tables.views, cases=tables.CPU_VIEWS, metric="rate"),
    "augment_gpu": partial(tables.views, cases=tables.GPU_VIEWS, metric="time"),
    "data": tables.data,
    "step_digits": partial(tables.small, name="train_step", case="cpu-digits", only=STEPS),
    "step_gpu": steps_table,
    "demo": partial(tables.small, name="demo"),
    "quality": tables.quality,
    "methods": methods,
    "mixture": tables.mixture,
    "other_losses": tables.other_losses,
    "emergence": partial(tables.small, name="emergence"),
    "large_digits": partial(tables.small, name="large_batch", case="cpu-digits"),
    "large_loss": partial(tables.small, name="large_batch", case="cpu-loss"),
    "large_gpu": partial(tables.small, name="large_batch", case="cuda-imagenet128"),
    "large_gpu_recipe": partial(tables.small, name="large_batch", case="cuda-imagenet128-recipe"),
    "recipes": lambda rows: tables.recipes(),
    "traffic": lambda rows: traffic.traffic_table(),
}


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
    problems, missing = [], set(BLOCKS)
    for document in documents(root):
        text = (root / document).read_text(encoding="utf-8")
        names = {match["name"] for match in MARKED.finditer(text)}
        missing -= names
        unknown = sorted(names - BLOCKS.keys())
        problems += [f"{document} has an unknown block {name}" for name in unknown]
        if not unknown and rendered(text, rows, document) != text:
            problems.append(f"{document} disagrees with the rows; run python -m benchmarks.report")
    problems += [f"no document has the block {name}" for name in sorted(missing)]
    return problems + [
        f"{plot.path} was not drawn from the rows; run python -m benchmarks.report"
        for plot in DRAWN.values()
        if not plot.agrees(rows, root)
    ]


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Rewrite or check; 1 if the check finds a disagreement."""
    parser = argparse.ArgumentParser(description="Documents and plots from the measured rows.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args(arguments).check:
        problems = disagreements(root)
        print("\n".join(problems) or "documents agree with the rows")
        return 1 if problems else 0
    rows = read_rows(root)
    for document in documents(root):
        path = root / document
        text = path.read_text(encoding="utf-8")
        path.write_text(rendered(text, rows, document), encoding="utf-8")
    for plot in DRAWN.values():
        plot.draw(rows, root)
    return 0
