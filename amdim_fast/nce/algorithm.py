"""How a pairing is computed from the passes and products of a backend.

The forward cuts the work by source rows, since a row needs all of its columns and nothing else; so
one pass can make the gradients at once. A later backward, which knows the sums, cuts it by target
images: each block of their gradients is then final.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.nce.operands import operand, rows_of
from amdim_fast.nce.pairing import Pairing, Results, Upstream
from amdim_fast.nce.plan import KEEP, ONE_PASS


class SourceGradient(NamedTuple):
    """Where the gradient of the stacked sources goes, and whether it is added to what is there."""

    rows: Tensor  # [S * B, D] in the dtype of the scores
    add: bool = False


def forward(passes: ModuleType, pairing: Pairing, results: Results) -> Tensor | None:
    """Write the results of a pairing; returns the scores if the plan keeps them."""
    shape, plan = pairing.shape, pairing.plan
    if plan.chunk_rows == 0:
        passes.fused_statistics(pairing, results)
        return None
    trg = operand(matrix(pairing.trg), in_limbs=pairing.options.limbs)
    for first in range(0, shape.rows, plan.chunk_rows):
        count = min(plan.chunk_rows, shape.rows - first)
        stored = passes.scores(pairing, first, count, trg)
        passes.statistics(pairing, results, stored, first)
        if plan.mode == KEEP:
            return stored
        del stored
    return None


def one_pass(
    passes: ModuleType,
    pairing: Pairing,
    results: Results,
    *,
    grad_src: SourceGradient | None,
    grad_trg: Tensor | None,
) -> None:
    """Write the results of a pairing and the gradients of the objective.

    Args:
        passes: backend.
        pairing: its plan's mode is "one_pass" or "recompute".
        results: out.
        grad_src: out; None if it is not wanted.
        grad_trg: [N, L, D], out; None if it is not wanted.
    """
    shape, plan = pairing.shape, pairing.plan
    upstream = Upstream(of_objective=True)
    if plan.mode != ONE_PASS:
        kept = forward(passes, pairing, results)
        backward(passes, pairing, results, upstream, kept, grad_src=grad_src, grad_trg=grad_trg)
        return
    trg = operand(matrix(pairing.trg), in_limbs=pairing.options.limbs)
    total = None if grad_trg is None else grad_trg.view(-1, shape.width)
    if total is not None and plan.sum_bytes:
        total = torch.empty_like(total, dtype=results.score.dtype)
    for first in range(0, shape.rows, plan.chunk_rows):
        count = min(plan.chunk_rows, shape.rows - first)
        grads, exponents = passes.gradients(
            pairing,
            results,
            upstream,
            passes.scores(pairing, first, count, trg),
            first_row=first,
            first_image=0,
            images=shape.targets,
            overwrite=True,
            with_statistics=True,
        )
        rows = slice(first, first + count)
        if grad_src is not None:
            out = grad_src.rows[rows]
            passes.write_source_gradient(out, grads, exponents, trg, add=grad_src.add)
        if total is not None:
            src = operand(pairing.src[rows], in_limbs=pairing.options.limbs)
            passes.write_target_gradient(total, grads, exponents, src, add=first > 0)
        del grads
    if grad_trg is not None and total is not None and plan.sum_bytes:
        grad_trg.view(-1, shape.width).copy_(total)


def backward(
    passes: ModuleType,
    pairing: Pairing,
    results: Results,
    upstream: Upstream,
    kept: Tensor | None,
    *,
    grad_src: SourceGradient | None,
    grad_trg: Tensor | None,
) -> None:
    """Write the gradients of a pairing whose results are known.

    Args:
        passes: backend.
        pairing: as in the forward.
        results: those of the forward; over every rank's targets where these are a slice.
        upstream: gradients of the results.
        kept: scores that the forward kept, which stay as they are, or None.
        grad_src: out; None if it is not wanted.
        grad_trg: [N, L, D], out; None if it is not wanted.
    """
    shape, plan = pairing.shape, pairing.plan
    fused = kept is None and plan.chunk_rows == 0
    targets = passes.loadable(pairing.trg) if fused else pairing.trg
    trg = operand(matrix(targets), in_limbs=pairing.options.limbs)
    src = operand(pairing.src, in_limbs=pairing.options.limbs)
    prepared = passes.row_gradients(pairing, results, upstream) if fused else None
    out = None if grad_trg is None else grad_trg.view(-1, shape.width)
    for start in range(0, shape.targets, plan.block_images):
        stop = min(start + plan.block_images, shape.targets)
        first, last = start * shape.locations, stop * shape.locations
        columns = rows_of(trg, first, last)
        if prepared is not None:
            exponents = prepared.exponents
            grads = passes.fused_gradients(pairing, results, prepared, targets[start:stop], start)
        else:
            if kept is None:
                stored = passes.scores(pairing, 0, shape.rows, columns)
            else:
                stored = passes.columns_of(kept, first, last)
            grads, exponents = passes.gradients(
                pairing,
                results,
                upstream,
                stored,
                first_row=0,
                first_image=start,
                images=stop - start,
                overwrite=kept is None,
            )
            del stored
        if grad_src is not None:
            add = grad_src.add or start > 0
            passes.write_source_gradient(grad_src.rows, grads, exponents, columns, add=add)
        if out is not None:
            passes.write_target_gradient(out[first:last], grads, exponents, src, add=False)
        del grads


def matrix(trg: Tensor) -> Tensor:
    """[N * L, D] targets; a copy only if they are not rows of one matrix."""
    return trg.reshape(-1, trg.shape[2])
