"""What holds of the package as a whole, against its goals: import time and lines tested."""

from __future__ import annotations

from benchmarks.rows import MISSING, Rows, cell, conditions, judged_row, table, verdict

IMPORT_GOAL = 1.5  # times the import of torch
COVERAGE_GOAL = 90  # percent


def repository_table(rows: Rows) -> str:
    """One line a figure."""
    imports = {row["provider"]: row for row in rows.named("import")}
    lines = {row["provider"]: row for row in rows.named("coverage")}
    body = []
    goal = f"under {IMPORT_GOAL:g}x torch's"
    ours, torch = (imports.get(provider) for provider in ("amdim_fast", "torch"))
    if ours and torch:
        factor = ours["q50"] / torch["q50"]
        measured = f"{cell(ours)}, {factor:.2f}x torch's {cell(torch)}"
        body.append(["import", goal, measured, verdict(factor < IMPORT_GOAL)])
    else:
        body.append(["import", goal, MISSING, ""])
    for folder in ("amdim_fast", "kernels"):
        row = lines.get(folder)
        label = f"lines of `{folder}/` that the tests reach"
        label += f", {row['note']}" if row and row["note"] else ""
        met = judged_row(row, lambda share: share > COVERAGE_GOAL)
        body.append([label, f"above {COVERAGE_GOAL} %", *met])
    used = [row for row in (ours, torch, *lines.values()) if row]
    return table(["", "goal", "measured", ""], body) + "\n\n" + conditions(used)
