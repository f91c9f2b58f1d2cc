"""Scores kept from forward to backward: those that the plan says, or of all pairings, or of none.

A plan differs from batch to batch, and a graph of any batch size may not: there ``keep``, a number
that is worked out when the graph runs, is 1 for the scores of all pairings and 0 for none, and each
pairing hands on one flat tensor. Elsewhere ``keep`` is None, and the plan decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amdim_fast.distributed.agreement import resolve
from amdim_fast.nce.backend import resolve_backend
from amdim_fast.nce.layout import Layout, passes_of
from amdim_fast.nce.op_inputs import Inputs
from amdim_fast.nce.plan import KEEP, default_budget
from amdim_fast.nce.sizes import Sizes
from amdim_fast.nce.way import Way

# Entries of a flat tensor in place of scores: sizes that may be 0 or 1 would be guarded.
NOTHING = 2


def keep_all(inputs: Inputs, group_name: str | None, needs: Sequence[bool]) -> int:
    """1 if the budget holds all scores and once more those of the largest pairing, else 0.

    0 too where a pairing has a single score, which is fewer than ``NOTHING``.
    """
    src = inputs.srcs[0]
    world_size = 1 if group_name is None else resolve(group_name).size()
    sizes = inputs.sizes(needs=needs, world_size=world_size)
    backend = resolve_backend(inputs.backend, src.dtype, src.device)
    way = Way(backend, False, src.device.type == "cuda", src.dtype)
    budget = inputs.memory_budget
    if budget is None:
        budget = default_budget(sizes.shapes, way)
    entries = _entries(inputs, sizes)
    largest: Any = entries[0]
    keep: Any = 1
    for size in entries:
        largest = torch.sym_max(largest, size)
        keep = torch.sym_min(keep, size // NOTHING)
    keep = torch.sym_min(keep, budget // (way.score_itemsize * (sum(entries) + largest)))
    return keep


def flat_sizes(inputs: Inputs, sizes: Sizes, keep: int) -> list[Any]:
    """Entries of the flat tensor of each pairing."""
    return [torch.sym_max(NOTHING, keep * size) for size in _entries(inputs, sizes)]


def handed_on(kept: Sequence[Tensor | None], keep: int | None, like: Tensor) -> list[Tensor]:
    """What the forward returns of the scores that each pairing has kept, or None."""
    if keep is None:
        return [block for block in kept if block is not None]
    return [like.new_empty(NOTHING) if block is None else block.view(-1) for block in kept]


def received(layout: Layout, blocks: Sequence[Tensor], keep: int | None) -> list[Tensor | None]:
    """The scores that each pairing has kept, or None, from what the forward returned."""
    found: list[Tensor | None] = []
    rest = iter(blocks)
    for shape, plan in zip(layout.shapes, layout.plan.pairings, strict=True):
        kept = plan.mode == KEEP
        block = next(rest) if kept or keep is not None else None
        if block is not None and kept:
            found.append(block.view(layout.passes.block_shape(shape.rows, shape.columns)))
        else:
            found.append(None)
    return found


def _entries(inputs: Inputs, sizes: Sizes) -> list[int]:
    """Entries in memory of the scores of each pairing."""
    src = inputs.srcs[0]
    block_shape = passes_of(resolve_backend(inputs.backend, src.dtype, src.device)).block_shape
    shapes = [block_shape(shape.rows, shape.columns) for shape in sizes.shapes]
    return [rows * columns for rows, columns in shapes]
