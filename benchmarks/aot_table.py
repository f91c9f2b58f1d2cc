"""The ahead-of-time gate as a table: the worst of every architecture and arithmetic."""

from __future__ import annotations

from benchmarks import sources
from benchmarks.rows import STALE, Row, Rows, table

HEADER = (
    *(
        "",
        "kernels",
        "registers",
        "stack, bytes a thread",
        "shared memory, kB",
        "wgmma",
        "TMA",
        "float64",
    ),
)


def aot_table(rows: Rows) -> str:
    """Worst value of each group of compilations."""
    if not rows.compiled:
        return "Not yet compiled."
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows.compiled:
        groups.setdefault((row["arch"], row["arithmetic"]), []).append(row)
    body = []
    for (arch, arithmetic), members in groups.items():
        worst = {key: max(row[key] for row in members) for key in ("registers", "spills", "fp64")}
        shared = max(row["shared_bytes"] for row in members) / 1e3
        products, loads = (sum(row[key] > 0 for row in members) for key in ("wgmma", "tma"))
        cells = [str(len(members)), str(worst["registers"]), str(worst["spills"]), f"{shared:.0f}"]
        body.append(
            [f"{arch}, {arithmetic}", *cells, f"in {products}", f"in {loads}", str(worst["fp64"])]
        )
    versions = rows.compiled[-1]["versions"]
    old = any(row["source"] != sources.digest("aot") for row in rows.compiled)
    return (
        table(HEADER, body)
        + f"\n\nWorst of each group. triton {versions['triton']}, torch {versions['torch']}."
        + (f" {STALE}" if old else "")
    )
