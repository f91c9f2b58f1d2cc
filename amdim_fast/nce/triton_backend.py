"""Launcher of the contrastive Triton kernels: the same groups and results as ``nce_torch``.

Fused, the kernels multiply themselves and the forward stores sums only; otherwise torch multiplies
one block at a time and the kernels read the products. The gradients of the products are written
once a block in the type of the inputs, and torch multiplies them with sources and targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amdim_fast.kernels import nce_backward as backward_kernels
from amdim_fast.kernels import nce_forward as forward_kernels
from amdim_fast.kernels import nce_scores as modes
from amdim_fast.nce import tiles
from amdim_fast.nce.half import (
    folded_sources,
    multiply,
    multiply_into,
    row_shifts,
    write_product,
)
from amdim_fast.nce.plan import LONGEST_ROW, ROW_UNIT, WorkRule, padded
from amdim_fast.nce.torch_backend import Group, row_gradients
from amdim_fast.nce.triton_problem import (
    Problem,
    capability_of,
    ceil_div,
    clip_mode,
    make_problem,
    torch_multiplies,
)

COMBINED_ROWS = 128
# A block of gradients of this size stays in the L2 cache of a large GPU.
PREFERRED_BLOCK_BYTES = 32 * 2**20
# Every block adds to all of grad_src, which with fewer columns takes longer than its product.
LEAST_COLUMNS = 4096


def work_rule(
    dtype: torch.dtype, device: torch.device, width: int, same_location: bool
) -> WorkRule:
    """Bytes a score takes: its gradient in the type of the inputs, and its product where read."""
    blocks = tiles.choose(capability_of(device), dtype, width)
    reads = same_location or torch_multiplies(blocks, width) is not None
    return WorkRule(
        work_itemsize=dtype.itemsize + (torch.float32.itemsize if reads else 0),
        kept_itemsize=torch.float32.itemsize,
        preferred_bytes=PREFERRED_BLOCK_BYTES,
        least_columns=LEAST_COLUMNS,
        row_unit=ROW_UNIT,
        longest_row=LONGEST_ROW,
    )


def describe(group: Group) -> str:
    """The ways of both kernels to the products of this group, as ``Plan.kernels`` reports them."""
    problem = make_problem(group, 0, copy=False)
    forward = f"forward {problem.forward_route}"
    if group.plan.mode == "forward":
        return forward
    return f"{forward}; backward {problem.backward_route(group.plan.mode == 'keep')}"


def forward(group: Group, image_offset: int = 0) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Own scores, log-sums over the negatives, mean squared raw scores, and what is kept.

    Args:
        group: inputs, src [S, B, D] and trg [N, L, D] of one type, and the plan.
        image_offset: source b has own image b + image_offset among the N; if that is outside them,
            its own scores are 0 and every target is a negative.

    Returns:
        pos [S, B, L]; neg [S, B, 1], or [S, B, L] for same_location; mean_sq [S]; the products
        [S, B, padded(N * L)] if the plan keeps them. All float32.
    """
    problem = make_problem(group, image_offset)
    sets, images, locations, _ = group.sizes()
    targets, rows, groups = problem.trg.shape[0], sets * images, problem.groups
    route, keep = problem.forward_route, group.plan.mode == "keep"
    tile = problem.blocks.forward if route.multiplies else problem.blocks.read_forward
    spans = [(0, targets)] if route.multiplies or keep else list(group.blocks())
    strips = [problem.strips(tile, (stop - start) * (locations // groups)) for start, stop in spans]
    carried = len(spans) > 1
    slots = max(count for count, _ in strips) + carried
    new: dict[str, Any] = {"dtype": torch.float32, "device": problem.src.device}
    everywhere = targets == images and image_offset == 0
    own = (torch.empty if everywhere else torch.zeros)((rows, locations), **new)
    partials = torch.empty((3, groups, slots, rows), **new)
    if carried:
        partials[:, :, 0] = 0.0
        partials[1, :, 0] = -torch.inf
    neg = torch.empty((rows, groups), **new)
    row_squares = torch.empty((groups, sets, images), **new)
    stored = keep or not route.multiplies
    work = _work(problem, spans[0][1] * locations, torch.float32) if stored else own
    mode = modes.READ
    if route.multiplies:
        mode = modes.COMPUTE_AND_STORE if keep else modes.COMPUTE

    with torch.cuda.device_of(problem.src):
        for (start, stop), (count, tiles) in zip(spans, strips, strict=True):
            scores = _rows(work, rows, (stop - start) * locations) if stored else own
            if not route.multiplies:
                _multiply_block(problem, scores, start, stop)
            totals, maxima, squares = partials[:, :, int(carried) :]
            forward_kernels.nce_forward[(ceil_div(rows, tile.rows) * count, groups)](
                *problem.features(tile, route, start, stop),
                scores,
                own,
                totals,
                maxima,
                squares,
                *problem.sizes(scores, start, stop),
                slots * rows,
                count,
                tiles,
                *problem.constants(),
                **problem.settings(tile, route, mode.value),
            )
            forward_kernels.nce_combine[(ceil_div(rows, COMBINED_ROWS), groups)](
                *(partials[0], partials[1], partials[2], neg, row_squares),
                *(rows, slots, count + carried, groups, group.clip or 0.0),
                CLIP=clip_mode(group),
                BLOCK_ROWS=COMBINED_ROWS,
            )
    raw_own = own.mul_(problem.scale).view(sets, images, locations)
    pos = raw_own if group.clip is None else group.clip * torch.tanh(raw_own / group.clip)
    mean_sq = row_squares.sum(dim=(0, 2)) / (images * targets * locations)
    kept = [work.view(sets, images, -1)] if keep else []
    return pos, neg.view(sets, images, groups), mean_sq, kept


def backward(
    group: Group,
    kept: Sequence[Tensor],
    pos: Tensor,
    neg: Tensor,
    grad_log_prob: Tensor | None,
    grad_mean_sq: Tensor | None,
    *,
    need_src: bool,
    need_trg: bool,
    image_offset: int = 0,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of src [S, B, D], float32, and trg [N, L, D], or None where not needed.

    Args:
        group: inputs and plan of the forward.
        kept: the products the forward kept; if none, they are computed again.
        pos: own scores of the forward.
        neg: log-sums of the forward; of every rank's targets where these are a slice.
        grad_log_prob: upstream [S, B, L], or None.
        grad_mean_sq: upstream [S], or None.
        need_src: whether the gradient of src is wanted.
        need_trg: whether the gradient of trg is wanted.
        image_offset: as in ``forward``.
    """
    problem = make_problem(group, image_offset)
    src, trg = problem.src, problem.trg
    sets, images, locations, width = group.sizes()
    rows, targets = sets * images, trg.shape[0]
    grad_own, weight = (
        part.reshape(rows, -1) * problem.scale
        for part in row_gradients(group, pos, neg, grad_log_prob)
    )
    penalty = src.new_zeros(sets, dtype=torch.float32) if grad_mean_sq is None else grad_mean_sq
    penalty = penalty * (2.0 * problem.scale**2 / (images * targets * locations))
    penalty = penalty.repeat_interleave(images, output_size=rows)
    shift = None
    if src.dtype == torch.float16:
        shift = row_shifts(src, trg, grad_own, weight, penalty)
        power = torch.exp2(shift)
        grad_own, weight = grad_own * power[:, None], weight * power[:, None]
        penalty = penalty * power
    grad_src = None
    grad_trg = trg.new_empty(trg.shape) if need_trg else None
    factor, folded = folded_sources(src, shift) if need_trg else (None, src)
    route = problem.backward_route(bool(kept))
    tile = problem.blocks.backward if route.multiplies else problem.blocks.read_backward
    mode = modes.COMPUTE if route.multiplies else modes.READ
    largest = min(targets, group.plan.block_images) * locations
    work = _work(problem, largest, src.dtype)
    products = None if kept or route.multiplies else _work(problem, largest, torch.float32)

    for start, stop in group.blocks():
        columns = (stop - start) * locations
        grad_rows = _rows(work, rows, columns)
        grad_scores = grad_rows[:, :columns]
        trg_columns = problem.columns(start, stop)
        scores = grad_own
        if kept:
            scores = kept[0].view(rows, -1)[:, start * locations :]
        elif products is not None:
            scores = _rows(products, rows, columns)
            _multiply_block(problem, scores, start, stop)
        with torch.cuda.device_of(src):
            backward_kernels.nce_backward[
                (ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns),)
            ](
                *problem.features(tile, route, start, stop),
                *(scores, grad_rows, grad_own, weight, neg, penalty),
                *problem.sizes(scores, start, stop),
                grad_rows.shape[1] // ROW_UNIT,
                *problem.constants(),
                **problem.settings(tile, route, mode.value),
            )
        if need_src:
            part = multiply(grad_scores, trg_columns)
            grad_src = part if grad_src is None else grad_src.add_(part)
        if grad_trg is not None:
            write_product(
                grad_trg[start:stop].view(columns, width), grad_scores.t(), folded, factor
            )
    if grad_src is not None:
        grad_src = grad_src if shift is None else grad_src.mul_(torch.exp2(-shift)[:, None])
        grad_src = grad_src.view(sets, images, width)
    return grad_src, grad_trg


def _work(problem: Problem, columns: int, dtype: torch.dtype) -> Tensor:
    """Memory of blocks of up to this many columns."""
    return problem.src.new_empty(problem.src.shape[0] * padded(columns), dtype=dtype)


def _rows(work: Tensor, rows: int, columns: int) -> Tensor:
    """[R, padded(columns)] at the start of the memory."""
    return work[: rows * padded(columns)].view(rows, -1)


def _multiply_block(problem: Problem, scores: Tensor, start: int, stop: int) -> None:
    """Fill scores with the products of target images start .. stop - 1; the padding is 0."""
    columns = problem.columns(start, stop)
    scores[:, len(columns) :] = 0.0
    multiply_into(scores[:, : len(columns)], problem.src, columns.t())
