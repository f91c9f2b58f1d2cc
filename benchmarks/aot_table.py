"""The ahead-of-time gate as a table: the worst of every architecture and arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.rows import table

HEADER = (
    *("", "kernels", "registers", "stack, bytes a thread", "shared memory, kB", "wgmma", "float64"),
)


def aot_table(root: Path) -> str:
    """Worst value of each group of compilations in results/aot.jsonl."""
    path = root / "benchmarks" / "results" / "aot.jsonl"
    if not path.exists():
        return "Not yet compiled."
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        groups.setdefault((row["arch"], row["arithmetic"]), []).append(row)
    body = []
    for (arch, arithmetic), rows in groups.items():
        worst = {key: max(row[key] for row in rows) for key in ("registers", "spills", "fp64")}
        shared = max(row["shared_bytes"] for row in rows) / 1e3
        products = sum(row["wgmma"] > 0 for row in rows)
        cells = [str(len(rows)), str(worst["registers"]), str(worst["spills"]), f"{shared:.0f}"]
        body.append([f"{arch}, {arithmetic}", *cells, f"in {products}", str(worst["fp64"])])
    versions = row["versions"]
    return (
        table(HEADER, body)
        + f"\n\nWorst of each group. triton {versions['triton']}, torch {versions['torch']}."
    )
