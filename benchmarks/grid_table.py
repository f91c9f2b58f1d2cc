"""The GPU grid of the contrastive bench as one table: times, rates, share of the product peak."""

from __future__ import annotations

from benchmarks.nce_grid import DTYPES, GRID, LOCATIONS, grid_key, peak_key, product_flops
from benchmarks.nce_providers import FORWARD, FORWARD_BACKWARD
from benchmarks.rows import MISSING, NO_ROWS, Row, Rows, cell, conditions, mark, table

LABELS = {
    "reference": "original algorithm",
    "reference_compiled": "the same, torch.compile",
    "torch": "amdim_fast, torch backend",
    "triton": "amdim_fast",
    "triton_fused": "amdim_fast, fused, pointers",
    "triton_descriptors": "amdim_fast, fused, descriptors",
    "triton_elementwise": "amdim_fast, elementwise",
    "gemms": "matrix products alone",
}
HEADER = ("", "B", "D", "forward", "forward + backward", "TFLOP/s", "of peak", "extra peak memory")


def grid_table(rows: Rows) -> str:
    """Every measured point; rates count three products of the size of the scores."""
    used: list[Row] = []
    body = []
    for dtype in DTYPES:
        peak = rows.find(peak_key(dtype), "product_peak", "product", "rate")
        for images, width in GRID:
            key = grid_key(images, width, dtype)
            for provider, label in LABELS.items():
                forward = rows.find(key, provider, FORWARD, "time")
                both = rows.find(key, provider, FORWARD_BACKWARD, "time")
                memory = rows.find(key, provider, FORWARD_BACKWARD, "extra_peak_memory")
                if both is None:
                    continue
                rate = product_flops(images, width, LOCATIONS, FORWARD_BACKWARD) / both["q50"] / 1e9
                share = f"{rate / peak['q50']:.0%}{mark(both, peak)}" if peak else MISSING
                name = f"{label}, {dtype}"
                sizes = [name, str(images), str(width), cell(forward), cell(both)]
                body.append([*sizes, f"{rate:.0f}{mark(both)}", share, cell(memory)])
                used += [row for row in (forward, both, memory, peak) if row]
    largest = rows.find("cuda-largest-bfloat16", "triton", FORWARD_BACKWARD, "largest_batch")
    if not body:
        return NO_ROWS
    return "\n\n".join(
        [table(HEADER, body), f"Largest batch that fits: {cell(largest)}.", conditions(used)]
    )
