"""Launcher of the contrastive Triton kernels: the same inputs and results as ``torch_backend``.

Fused kernels compute the products themselves, and the forward stores only sums; otherwise torch
computes the products of one block at a time and the kernels read them. The backward writes the
gradients of a block's products once, in the dtype of the inputs, and torch multiplies them with
sources and targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amdim_fast.kernels import nce_backward as backward_kernels
from amdim_fast.kernels import nce_forward as forward_kernels
from amdim_fast.kernels import nce_scores
from amdim_fast.nce import tiles
from amdim_fast.nce.clip import clipped
from amdim_fast.nce.half import (
    folded_sources,
    multiply,
    multiply_into,
    row_shifts,
    write_product,
)
from amdim_fast.nce.plan import LONGEST_ROW, ROW_UNIT, WorkRule, padded
from amdim_fast.nce.torch_backend import Pairing, row_gradients
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
# Every block adds to all of grad_src; with fewer columns that takes longer than its product.
LEAST_COLUMNS = 4096


def work_rule(
    dtype: torch.dtype, device: torch.device, width: int, same_location: bool
) -> WorkRule:
    """Bytes a score takes: its gradient in the dtype of the inputs, and its product if read."""
    tile_set = tiles.choose(capability_of(device), dtype, width)
    reads = same_location or torch_multiplies(tile_set, width) is not None
    return WorkRule(
        work_itemsize=dtype.itemsize + (torch.float32.itemsize if reads else 0),
        kept_itemsize=torch.float32.itemsize,
        preferred_bytes=PREFERRED_BLOCK_BYTES,
        least_columns=LEAST_COLUMNS,
        row_unit=ROW_UNIT,
        longest_row=LONGEST_ROW,
    )


def describe(pairing: Pairing) -> str:
    """How both kernels get the products of this pairing, as ``Plan.kernels`` reports it."""
    problem = make_problem(pairing, 0, copy=False)
    forward = f"forward {problem.forward_route}"
    if pairing.plan.mode == "forward":
        return forward
    return f"{forward}; backward {problem.backward_route(pairing.plan.mode == 'keep')}"


def forward(pairing: Pairing, image_offset: int = 0) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """As ``torch_backend.forward``; src and trg have one dtype and results are float32.

    What is kept is one tensor of products, [S, B, padded(N * L)].
    """
    problem = make_problem(pairing, image_offset)
    sets, images, locations, _ = pairing.sizes()
    targets, rows, softmaxes = problem.trg.shape[0], sets * images, problem.softmaxes
    route, keep = problem.forward_route, pairing.plan.mode == "keep"
    tile = problem.tile_set.forward if route.multiplies else problem.tile_set.read_forward
    spans = [(0, targets)] if route.multiplies or keep else list(pairing.blocks())
    strips = [
        problem.strips(tile, (stop - start) * (locations // softmaxes)) for start, stop in spans
    ]
    carried = len(spans) > 1
    slots = max(count for count, _ in strips) + carried
    new: dict[str, Any] = {"dtype": torch.float32, "device": problem.src.device}
    everywhere = targets == images and image_offset == 0
    own = (torch.empty if everywhere else torch.zeros)((rows, locations), **new)
    partials = torch.empty((3, softmaxes, slots, rows), **new)
    if carried:
        partials[:, :, 0] = 0.0
        partials[1, :, 0] = -torch.inf
    neg = torch.empty((rows, softmaxes), **new)
    row_squares = torch.empty((softmaxes, sets, images), **new)
    stored = keep or not route.multiplies
    work = _work(problem, spans[0][1] * locations, torch.float32) if stored else own
    mode = nce_scores.READ
    if route.multiplies:
        mode = nce_scores.COMPUTE_AND_STORE if keep else nce_scores.COMPUTE

    with torch.cuda.device_of(problem.src):
        for (start, stop), (count, tiles_per_strip) in zip(spans, strips, strict=True):
            scores = _rows(work, rows, (stop - start) * locations) if stored else own
            if not route.multiplies:
                _multiply_block(problem, scores, start, stop)
            totals, maxima, squares = partials[:, :, int(carried) :]
            forward_kernels.nce_forward[(ceil_div(rows, tile.rows) * count, softmaxes)](
                *problem.features(tile, route, start, stop),
                scores,
                own,
                totals,
                maxima,
                squares,
                *problem.sizes(scores, start, stop),
                slots * rows,
                count,
                tiles_per_strip,
                *problem.constants(),
                **problem.settings(tile, route, mode.value),
            )
            forward_kernels.nce_combine[(ceil_div(rows, COMBINED_ROWS), softmaxes)](
                *(partials[0], partials[1], partials[2], neg, row_squares),
                *(rows, slots, count + carried, softmaxes, pairing.clip or 0.0),
                CLIP=clip_mode(pairing),
                TILE_ROWS=COMBINED_ROWS,
            )
    raw_own = own.mul_(problem.scale).view(sets, images, locations)
    score = clipped(raw_own, pairing.clip)
    mean_sq = row_squares.sum(dim=(0, 2)) / (images * targets * locations)
    kept = [work.view(sets, images, -1)] if keep else []
    return score, neg.view(sets, images, softmaxes), mean_sq, kept


def backward(
    pairing: Pairing,
    kept: Sequence[Tensor],
    score: Tensor,
    neg: Tensor,
    grad_log_prob: Tensor | None,
    grad_mean_sq: Tensor | None,
    *,
    need_src: bool,
    need_trg: bool,
    image_offset: int = 0,
) -> tuple[Tensor | None, Tensor | None]:
    """As ``torch_backend.backward``; the gradient of src is float32."""
    problem = make_problem(pairing, image_offset)
    src, trg = problem.src, problem.trg
    sets, images, locations, width = pairing.sizes()
    rows, targets = sets * images, trg.shape[0]
    grad_own, weight = (
        part.reshape(rows, -1) * problem.scale
        for part in row_gradients(pairing, score, neg, grad_log_prob)
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
    tile = problem.tile_set.backward if route.multiplies else problem.tile_set.read_backward
    mode = nce_scores.COMPUTE if route.multiplies else nce_scores.READ
    largest = min(targets, pairing.plan.block_images) * locations
    work = _work(problem, largest, src.dtype)
    products = None if kept or route.multiplies else _work(problem, largest, torch.float32)

    for start, stop in pairing.blocks():
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
    """Memory for blocks of up to this many columns."""
    return problem.src.new_empty(problem.src.shape[0] * padded(columns), dtype=dtype)


def _rows(work: Tensor, rows: int, columns: int) -> Tensor:
    """[R, padded(columns)] view of the start of the memory."""
    return work[: rows * padded(columns)].view(rows, -1)


def _multiply_block(problem: Problem, scores: Tensor, start: int, stop: int) -> None:
    """Fill scores with the products of target images start .. stop - 1; the padding is 0."""
    columns = problem.columns(start, stop)
    scores[:, len(columns) :] = 0.0
    multiply_into(scores[:, : len(columns)], problem.src, columns.t())
