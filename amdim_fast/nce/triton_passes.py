"""The contrastive op's passes through the Triton kernels; the same functions as ``torch_passes``.

A block of scores is [C, padded(n * L)]: source rows against target locations, float32 products.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.kernels import launch, nce_backward, nce_clip, nce_ends, nce_forward, nce_layout
from amdim_fast.kernels import nce_rows as kernels
from amdim_fast.kernels.nce_tiles import Tile, TileSet, arithmetic
from amdim_fast.nce import tiles
from amdim_fast.nce.clip import LOG2_E, shifted_clip
from amdim_fast.nce.operands import (
    Operand,
    operand,
    row_count,
    write_products,
    write_source_gradient,
    write_target_gradient,
)
from amdim_fast.nce.pairing import Options, Pairing, Results, Upstream
from amdim_fast.nce.plan import KEEP, ROW_UNIT, PairingPlan, Way, padded

PROGRAMS_PER_PROCESSOR = 4
COMBINED_ROWS = 128
FEATURE_TILE = 1024
SUM_TILE = 1024
SCALE_TILE = 8192
__all__ = ["write_source_gradient", "write_target_gradient"]

NONE, OBJECTIVE, RESULTS = (
    mode.value for mode in (kernels.NO_GRADIENTS, kernels.OF_OBJECTIVE, kernels.OF_RESULTS)
)


class Clip(NamedTuple):
    """The clip as kernels take it; see ``kernels.nce_clip``."""

    mode: int
    steep: float
    depth: float
    inverse: float


@functools.cache
def clip_arguments(clip: float | None, scale: float) -> Clip:
    """SHIFTED, TANH or NO_CLIP, with its factors for products with this scale."""
    if clip is None:
        return Clip(nce_clip.NO_CLIP.value, 0.0, 0.0, 0.0)
    if shifted_clip(clip) is None:
        return Clip(nce_clip.TANH.value, scale / clip, clip, 1.0 / clip)
    steep, depth = 2.0 * LOG2_E * scale / clip, -2.0 * LOG2_E * clip
    return Clip(nce_clip.SHIFTED.value, steep, depth, 1.0 / clip)


def way_of(device: torch.device, dtype: torch.dtype, width: int, options: Options) -> Way:
    """What decides about memory."""
    tile_set = tiles.choose(capability_of(device), dtype, width)
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


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability; None on a CPU, where the interpreter runs the kernels."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def describe(
    way: Way, device: torch.device, width: int, plans: Sequence[PairingPlan]
) -> tuple[str, ...]:
    """Where the products of each pairing come from, as ``Plan.kernels`` reports it."""
    tile_set = tiles.choose(capability_of(device), way.dtype, width)
    why = torch_multiplies(tile_set, width)
    if why is None and not way.fused:
        why = "they are in limbs" if way.limbs else "negatives are of the same location"
    return tuple(_describe(plan, way, why) for plan in plans)


def _describe(plan: PairingPlan, way: Way, why: str | None) -> str:
    if way.fused and plan.mode not in (KEEP, "one_pass"):
        return "products in the kernels"
    why = why or ("the scores are kept" if plan.mode == KEEP else "gradients follow at once")
    return f"products by torch, since {why}"


def stack_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type of stacked sources: theirs."""
    return dtype


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
    exponents = _exponents(pairing)
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


def _exponents(pairing: Pairing) -> Tensor | None:
    """Room for the power of two on each row of float16 gradients."""
    if pairing.src.dtype != torch.float16:
        return None
    return pairing.src.new_empty(pairing.shape.rows, dtype=torch.float32)


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
    shape, options = pairing.shape, pairing.options
    clip = clip_arguments(options.clip, pairing.scale)
    tile_set = tiles.choose(capability_of(pairing.src.device), pairing.src.dtype, shape.width)
    tile = tile_set.read_backward if gradients else tile_set.read_forward
    own = power_of_two(shape.locations)
    columns = min(tile.columns, max(16, power_of_two(images * shape.locations)))
    launch.launch(
        kernels.nce_rows,
        (len(stored),),
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
        first_row,
        pairing.first_set,
        pairing.first_own,
        pairing.first_sum,
        shape.images,
        images,
        shape.locations,
        pairing.image_offset - first_image,
        options.parts,
        stored.stride(0) // ROW_UNIT,
        grads.stride(0) // ROW_UNIT,
        stored.shape[1] // ROW_UNIT,
        options.loss_weight,
        options.mean_sq_weight,
        pairing.own_share,
        pairing.square_share,
        pairing.scale,
        clip.steep,
        clip.depth,
        clip.inverse,
        STATISTICS=statistics,
        GRADIENTS=gradients,
        SAME_LOCATION=options.same_location,
        CLIP=clip.mode,
        TILE_IMAGES=max(1, tile.columns // own) if options.same_location else 1,
        TILE_COLUMNS=own if options.same_location else columns,
        TILE_OWN=own,
        num_warps=tile.warps,
        num_stages=1,
    )


class Features(NamedTuple):
    """Sources and targets as a fused kernel takes them, with their strides in its units."""

    src: object  # tensor or descriptor
    trg: object
    lengths: tuple[int, ...]
    descriptors: bool


def loadable(trg: Tensor) -> Tensor:
    """Targets in a layout that the fused kernels load: these, or a copy."""
    if nce_layout.loadable(trg):
        return trg
    return torch.empty(trg.shape, dtype=trg.dtype, device=trg.device).copy_(trg)


def _features(src: Tensor, trg: Tensor, tile: Tile) -> Features:
    """Of sources [R, D], in memory of their own, and loadable targets [n, L, D]."""
    capability = capability_of(src.device)
    described = nce_layout.descriptor_obstacle(trg, tile, capability) is None
    lengths = (src.shape[1], *nce_layout.strides(src), *nce_layout.strides(trg))
    units = tuple(length // nce_layout.FEATURE_UNIT for length in lengths)
    if described:
        src_tiles, trg_tiles = nce_layout.descriptors(src, trg, tile)
        return Features(src_tiles, trg_tiles, units, True)
    return Features(src, trg, units, False)


def fused_statistics(pairing: Pairing, results: Results) -> None:
    """Write the results of all rows; the products stay in the kernel."""
    shape, options = pairing.shape, pairing.options
    device = pairing.src.device
    clip = clip_arguments(options.clip, pairing.scale)
    tile = tiles.choose(capability_of(device), pairing.src.dtype, shape.width).forward
    strips, tiles_per_strip = strips_of(device, tile, shape.rows, shape.columns)
    new = results.score.new_empty
    totals, squares = new((strips, shape.rows)), new((strips, shape.rows))
    maxima = totals if clip.mode == nce_clip.SHIFTED.value else torch.empty_like(totals)
    own = new((shape.rows, shape.locations))
    found = _features(pairing.src, loadable(pairing.trg), tile)
    launch.launch(
        nce_forward.nce_forward,
        (ceil_div(shape.rows, tile.rows) * strips,),
        found.src,
        found.trg,
        own,
        totals,
        maxima,
        squares,
        shape.rows,
        shape.targets,
        shape.locations,
        shape.images,
        pairing.image_offset,
        *found.lengths,
        strips,
        tiles_per_strip,
        pairing.scale,
        clip.steep,
        clip.depth,
        **_constants(clip, tile, pairing.src.dtype, found.descriptors),
    )
    launch.launch(
        nce_forward.nce_combine,
        (ceil_div(shape.rows, COMBINED_ROWS),),
        totals,
        maxima,
        squares,
        own,
        results.score,
        results.log_prob,
        results.neg,
        results.row_loss,
        results.row_square,
        shape.rows,
        strips,
        shape.locations,
        pairing.first_row,
        pairing.first_own,
        shape.images,
        shape.targets,
        pairing.image_offset,
        pairing.own_share,
        pairing.square_share,
        pairing.scale,
        clip.depth,
        clip.inverse,
        CLIP=clip.mode,
        TILE_ROWS=COMBINED_ROWS,
        num_warps=4,
        num_stages=1,
    )


class RowGradients(NamedTuple):
    """What the fused backward needs of each row, and float16's exponents."""

    own: Tensor  # [R, L] float32
    weight: Tensor  # [R] float32
    penalty: Tensor  # [R] float32
    exponents: Tensor | None  # [R] float32


def row_gradients(pairing: Pairing, results: Results, upstream: Upstream) -> RowGradients:
    """Gradients that do not depend on the products with other images."""
    shape, options = pairing.shape, pairing.options
    rows = shape.rows
    new = results.score.new_empty
    found = RowGradients(new((rows, shape.locations)), new(rows), new(rows), _exponents(pairing))
    launch.launch(
        nce_backward.nce_row_gradients,
        (rows,),
        results.score,
        results.neg,
        results.row_square,
        found.exponents,
        upstream.log_prob,
        upstream.loss,
        upstream.mean_sq,
        upstream.totals,
        found.own,
        found.weight,
        found.penalty,
        pairing.first_set,
        pairing.first_own,
        pairing.first_sum,
        shape.images,
        shape.locations,
        options.parts,
        options.loss_weight,
        options.mean_sq_weight,
        pairing.own_share,
        pairing.square_share,
        pairing.scale,
        clip_arguments(options.clip, pairing.scale).inverse,
        GRADIENTS=OBJECTIVE if upstream.of_objective else RESULTS,
        TILE_OWN=power_of_two(shape.locations),
        num_warps=1,
        num_stages=1,
    )
    return found


def fused_gradients(
    pairing: Pairing, results: Results, prepared: RowGradients, trg: Tensor, first_image: int
) -> Tensor:
    """[R, n * L] gradients of the products with loadable targets [n, L, D]."""
    shape, images = pairing.shape, len(trg)
    clip = clip_arguments(pairing.options.clip, pairing.scale)
    dtype = pairing.src.dtype
    tile = tiles.choose(capability_of(pairing.src.device), dtype, shape.width).backward
    columns = images * shape.locations
    grads = pairing.src.new_empty((shape.rows, padded(columns)))
    found = _features(pairing.src, trg, tile)
    launch.launch(
        nce_backward.nce_backward,
        (ceil_div(shape.rows, tile.rows) * ceil_div(columns, tile.columns),),
        found.src,
        found.trg,
        grads,
        prepared.own,
        prepared.weight,
        results.neg,
        prepared.penalty,
        pairing.first_sum,
        shape.rows,
        images,
        shape.locations,
        shape.images,
        pairing.image_offset - first_image,
        *found.lengths,
        grads.shape[1] // ROW_UNIT,
        pairing.scale,
        clip.steep,
        clip.depth,
        **_constants(clip, tile, dtype, found.descriptors),
    )
    return grads[:, :columns]


def _constants(clip: Clip, tile: Tile, dtype: torch.dtype, descriptors: bool) -> dict[str, object]:
    """What a fused kernel is compiled for; ``tests/kernels/aot.py`` compiles the same variants."""
    return {
        "CLIP": clip.mode,
        "TILE_ROWS": tile.rows,
        "TILE_COLUMNS": tile.columns,
        "TILE_WIDTH": tile.width,
        "SWIZZLE_ROWS": tile.swizzle,
        "DESCRIPTORS": descriptors,
        "PRECISION": "tf32" if arithmetic(dtype) == "tf32" else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def strips_of(device: torch.device, tile: Tile, rows: int, columns: int) -> tuple[int, int]:
    """Number of strips of columns, enough for all multiprocessors, and of tiles in each."""
    processors = 1
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    column_tiles = ceil_div(columns, tile.columns)
    row_tiles = ceil_div(rows, tile.rows)
    strips = min(column_tiles, ceil_div(PROGRAMS_PER_PROCESSOR * processors, row_tiles))
    per_strip = ceil_div(column_tiles, strips)
    return ceil_div(column_tiles, per_strip), per_strip


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


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below ``count``."""
    return 1 << (count - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)
