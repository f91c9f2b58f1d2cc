"""What comes before and after the passes, by kernels: stacks, sums of rows, gradients in place."""

from __future__ import annotations

from torch import Tensor

from amdim_fast.kernels import launch, nce_ends
from amdim_fast.nce.pairing import Options, Results
from amdim_fast.nce.triton_arguments import ceil_div

FEATURE_TILE = 1024
SUM_TILE = 1024
SCALE_TILE = 8192


def stack(src: Tensor, trg: Tensor | None, picks: Tensor | None) -> Tensor:
    """[S * B, D] given sources, then those at ``picks`` of ``trg`` [B, L, D], if any."""
    sets, images, width = src.shape
    if trg is None or picks is None:
        return src.reshape(-1, width).contiguous()
    out = src.new_empty((sets * images + images, width))
    launch.launch(
        nce_ends.nce_stack,
        (len(out), ceil_div(width, FEATURE_TILE)),
        src,
        trg,
        picks,
        out,
        sets * images,
        images,
        width,
        *src.stride(),
        *trg.stride(),
        TILE=FEATURE_TILE,
    )
    return out


def sum_rows(
    results: Results, options: Options, images: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [sets], mean_sq [sets], totals [parts + 1] and their sum, a scalar."""
    sets = len(results.row_loss) // images
    loss, mean_sq = (results.row_loss.new_empty(sets) for _ in range(2))
    totals = loss.new_empty(options.parts + 1)
    objective = loss.new_empty(())
    launch.launch(
        nce_ends.nce_sums,
        (1,),
        results.row_loss,
        results.row_square,
        loss,
        mean_sq,
        totals,
        objective,
        sets,
        options.parts,
        images,
        options.loss_weight,
        options.mean_sq_weight,
        TILE=SUM_TILE,
        num_warps=8,
        num_stages=1,
    )
    return loss, mean_sq, totals, objective


def finish_sources(
    part: Tensor, out: Tensor | None, trg: Tensor | None, picks: Tensor | None
) -> None:
    """As ``torch_passes.finish_sources``."""
    rows, width = part.shape
    given = rows - (0 if picks is None else len(picks))
    first_row = given if out is None else 0
    last_row = given if trg is None else rows
    launch.launch(
        nce_ends.nce_finish,
        (last_row - first_row, ceil_div(width, FEATURE_TILE)),
        part,
        out,
        trg,
        None if trg is None else picks,
        given,
        first_row,
        0 if trg is None else trg.shape[1],
        width,
        TILE=FEATURE_TILE,
        num_warps=4,
        num_stages=1,
    )


def scale(grads: Tensor, upstream: Tensor) -> None:
    """Multiply gradients by that of the objective, in place; the device sees to it if that is 1."""
    launch.launch(
        nce_ends.nce_scale,
        (ceil_div(len(grads), SCALE_TILE),),
        grads,
        upstream,
        len(grads),
        TILE=SCALE_TILE,
        num_warps=8,
        num_stages=1,
    )
