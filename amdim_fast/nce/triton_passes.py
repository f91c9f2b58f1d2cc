"""The contrastive op's passes through the Triton kernels; the same functions as ``torch_passes``.

A block of scores is [C, padded(n * L)]: source rows against target locations, float32 products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amdim_fast.kernels import nce_layout
from amdim_fast.kernels.nce_tiles import TileSet
from amdim_fast.nce.operands import (
    Operand,
    operand,
    row_count,
    write_products,
    write_source_gradient,
    write_target_gradient,
)
from amdim_fast.nce.pairing import Options, Pairing, Results, Upstream
from amdim_fast.nce.plan import KEEP, ONE_PASS, PairingPlan
from amdim_fast.nce.triton_arguments import (
    NONE,
    OBJECTIVE,
    RESULTS,
    exponents_of,
    tiles_of,
)
from amdim_fast.nce.triton_ends import finish_sources, scale, stack, sum_rows
from amdim_fast.nce.triton_fused import (
    fused_gradients,
    fused_statistics,
    loadable,
    row_gradients,
)
from amdim_fast.nce.triton_rows import Places, rows_launch
from amdim_fast.nce.way import ROW_UNIT, Way, padded

# The passes of this backend that stand elsewhere.
__all__ = [
    "finish_sources",
    "fused_gradients",
    "fused_statistics",
    "loadable",
    "row_gradients",
    "scale",
    "stack",
    "sum_rows",
    "write_source_gradient",
    "write_target_gradient",
]


def way_of(device: torch.device, dtype: torch.dtype, width: int, options: Options) -> Way:
    """What decides about memory."""
    tile_set = tiles_of(device, dtype, width)
    torch_only = options.same_location or options.limbs
    fused = not torch_only and torch_multiplies(tile_set, width) is None
    return Way("triton", fused, device.type == "cuda", dtype, options.limbs)


def torch_multiplies(tile_set: TileSet, width: int) -> str | None:
    """Why torch computes the products for this width, or None if the kernels can."""
    if not tile_set.fused:
        return "the tile table uses torch's product here"
    if width % nce_layout.FEATURE_UNIT:
        return f"D = {width} is not a multiple of {nce_layout.FEATURE_UNIT}"
    return None


def describe(
    way: Way, device: torch.device, width: int, plans: Sequence[PairingPlan], options: Options
) -> tuple[str, ...]:
    """Where the products of each pairing come from, as ``Plan.kernels`` reports it."""
    tile_set = tiles_of(device, way.dtype, width)
    why = torch_multiplies(tile_set, width)
    if why is None and not way.fused:
        why = "they are in limbs" if options.limbs else "negatives are of the same location"
    return tuple(_describe(plan, way, why) for plan in plans)


def _describe(plan: PairingPlan, way: Way, why: str | None) -> str:
    if way.fused and plan.mode not in (KEEP, ONE_PASS):
        return "products in the kernels"
    why = why or ("the scores are kept" if plan.mode == KEEP else "gradients follow at once")
    return f"products by torch, since {why}"


def stack_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type of stacked sources: theirs."""
    return dtype


def scores(pairing: Pairing, first_row: int, rows: int, trg: Operand) -> Tensor:
    """[C, padded(n * L)] products of some rows with targets [n * L, D]; the padding is not set."""
    columns = row_count(trg)
    src = operand(pairing.src[first_row : first_row + rows], in_limbs=pairing.options.limbs)
    room = pairing.src.new_empty((rows, padded(columns)), dtype=torch.float32)
    write_products(room[:, :columns], src, trg)
    return room


def block_shape(rows: int, columns: int) -> tuple[int, int]:
    """Shape of the scores of rows against columns."""
    return rows, padded(columns)


def columns_of(stored: Tensor, first: int, last: int) -> Tensor:
    """The scores of target locations ``first`` .. ``last - 1``, without a copy."""
    return stored[:, first : first + padded(last - first)]


def statistics(pairing: Pairing, results: Results, stored: Tensor, first_row: int) -> None:
    """Write the results of the rows of ``stored`` [C, padded(N * L)]."""
    _run_rows(
        pairing,
        results,
        Upstream(),
        stored,
        stored,
        None,
        first_row=first_row,
        first_image=0,
        images=pairing.shape.targets,
        statistics=True,
        gradients=NONE,
    )


def gradients(
    pairing: Pairing,
    results: Results,
    upstream: Upstream,
    stored: Tensor,
    *,
    first_row: int,
    first_image: int,
    images: int,
    overwrite: bool,
    with_statistics: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As ``torch_passes.gradients``."""
    dtype = pairing.src.dtype
    if overwrite:
        grads = stored.view(dtype)
    else:
        grads = torch.empty_like(stored, dtype=dtype, memory_format=torch.contiguous_format)
    exponents = exponents_of(pairing)
    _run_rows(
        pairing,
        results,
        upstream,
        stored,
        grads,
        exponents,
        first_row=first_row,
        first_image=first_image,
        images=images,
        statistics=with_statistics,
        gradients=OBJECTIVE if upstream.of_objective else RESULTS,
    )
    rows = slice(first_row, first_row + len(stored))
    return (
        grads[:, : images * pairing.shape.locations],
        None if exponents is None else exponents[rows],
    )


def _run_rows(
    pairing: Pairing,
    results: Results,
    upstream: Upstream,
    stored: Tensor,
    grads: Tensor,
    exponents: Tensor | None,
    *,
    first_row: int,
    first_image: int,
    images: int,
    statistics: bool,
    gradients: int,
) -> None:
    places = Places(
        first_row,
        pairing.first_set,
        pairing.first_own,
        pairing.first_sum,
        pairing.image_offset - first_image,
    )
    run = rows_launch(
        pairing.shape,
        pairing.options,
        places,
        tiles_of(stored.device, pairing.src.dtype, pairing.shape.width),
        images=images,
        rows=stored.shape[0],
        scores_units=stored.stride(0) // ROW_UNIT,
        grads_units=grads.stride(0) // ROW_UNIT,
        limit_units=stored.shape[1] // ROW_UNIT,
        statistics=statistics,
        gradients=gradients,
        device=stored.device,
        dtype=pairing.src.dtype,
    )
    run(
        stored,
        grads,
        results.score,
        results.log_prob,
        results.neg,
        results.row_loss,
        results.row_square,
        exponents,
        upstream.log_prob,
        upstream.loss,
        upstream.mean_sq,
        upstream.totals,
    )
