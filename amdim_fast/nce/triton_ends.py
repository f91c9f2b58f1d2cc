"""What comes before and after the passes, by kernels: stacks, sums of rows, gradients in place."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from amdim_fast.kernels import nce_ends
from amdim_fast.kernels.launch import Prepared
from amdim_fast.nce.pairing import Options, Results
from amdim_fast.nce.triton_arguments import ceil_div

FEATURE_TILE = 1024
SUM_TILE = 1024
SCALE_TILE = 8192
MOST_LAUNCHES = 1024


def stack(src: Tensor, trg: Tensor | None, picks: Tensor | None) -> Tensor:
    """[S * B, D] given sources, then those at ``picks`` of ``trg`` [B, L, D], if any."""
    sets, images, width = src.shape
    if trg is None or picks is None:
        return src.reshape(-1, width).contiguous()
    out = src.new_empty((sets * images + images, width))
    strides = (*src.stride(), *trg.stride())
    _stack_launch(sets, images, width, strides, src.device, src.dtype)(src, trg, picks, out)
    return out


@functools.lru_cache(MOST_LAUNCHES)
def _stack_launch(
    sets: int,
    images: int,
    width: int,
    strides: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Prepared:
    rows = sets * images
    return Prepared(
        nce_ends.nce_stack,
        (rows + images, ceil_div(width, FEATURE_TILE)),
        (rows, images, width, *strides),
        TILE=FEATURE_TILE,
    )


def sum_rows(
    results: Results, options: Options, images: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [sets], mean_sq [sets], totals [parts + 1] and their sum, a scalar."""
    row_loss = results.row_loss
    sets = row_loss.shape[0] // images
    loss, mean_sq = row_loss.new_empty(sets), row_loss.new_empty(sets)
    totals = loss.new_empty(options.parts + 1)
    objective = loss.new_empty(())
    run = _sums_launch(sets, options, images, row_loss.device)
    run(row_loss, results.row_square, loss, mean_sq, totals, objective)
    return loss, mean_sq, totals, objective


@functools.lru_cache(MOST_LAUNCHES)
def _sums_launch(sets: int, options: Options, images: int, device: torch.device) -> Prepared:
    return Prepared(
        nce_ends.nce_sums,
        (1,),
        (sets, options.parts, images, options.loss_weight, options.mean_sq_weight),
        TILE=SUM_TILE,
        num_warps=8,
        num_stages=1,
    )


def finish_sources(
    part: Tensor, out: Tensor | None, trg: Tensor | None, picks: Tensor | None
) -> None:
    """As ``torch_passes.finish_sources``."""
    rows, width = part.shape
    given = rows - (0 if picks is None else picks.shape[0])
    first_row = given if out is None else 0
    last_row = given if trg is None else rows
    locations = 0 if trg is None else trg.shape[1]
    dtype = (trg if out is None else out).dtype  # type: ignore[union-attr]
    run = _finish_launch(given, first_row, last_row, locations, width, part.device, dtype)
    run(part, out, trg, None if trg is None else picks)


@functools.lru_cache(MOST_LAUNCHES)
def _finish_launch(
    given: int,
    first_row: int,
    last_row: int,
    locations: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Prepared:
    return Prepared(
        nce_ends.nce_finish,
        (last_row - first_row, ceil_div(width, FEATURE_TILE)),
        (given, first_row, locations, width),
        TILE=FEATURE_TILE,
        num_warps=4,
        num_stages=1,
    )


def scale(grads: Tensor, upstream: Tensor) -> None:
    """Multiply gradients by that of the objective, in place; the device sees to it if that is 1."""
    count = grads.shape[0]
    _scale_launch(count, grads.device, grads.dtype, upstream.dtype)(grads, upstream)


@functools.lru_cache(MOST_LAUNCHES)
def _scale_launch(
    count: int, device: torch.device, dtype: torch.dtype, upstream: torch.dtype
) -> Prepared:
    return Prepared(
        nce_ends.nce_scale,
        (ceil_div(count, SCALE_TILE),),
        (count,),
        TILE=SCALE_TILE,
        num_warps=8,
        num_stages=1,
    )
