"""Passes of kernels that multiply: the products stay inside, nothing of their size is stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.kernels import launch, nce_backward, nce_clip, nce_forward, nce_layout
from amdim_fast.kernels.nce_tiles import Tile, arithmetic
from amdim_fast.nce.pairing import Pairing, Results, Upstream
from amdim_fast.nce.triton_arguments import (
    OBJECTIVE,
    RESULTS,
    Clip,
    capability_of,
    ceil_div,
    clip_arguments,
    exponents_of,
    power_of_two,
    tiles_of,
)
from amdim_fast.nce.way import ROW_UNIT, padded

PROGRAMS_PER_PROCESSOR = 4
COMBINED_ROWS = 128


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


def check_multiplies(src: Tensor) -> None:
    """Raise where products would be wrong: the interpreter has no bfloat16 and multiplies its bits.

    Raises:
        ValueError: sources are bfloat16 on a CPU.
    """
    if src.device.type == "cpu" and src.dtype == torch.bfloat16:
        raise ValueError(
            "src is torch.bfloat16, which Triton's interpreter multiplies wrongly; on a CPU, use"
            " backend='torch', or float32 or float16"
        )


def _features(src: Tensor, trg: Tensor, tile: Tile) -> Features:
    """Of sources [R, D], in memory of their own, and loadable targets [n, L, D]."""
    check_multiplies(src)
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
    tile = tiles_of(device, pairing.src.dtype, shape.width).forward
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
    found = RowGradients(new((rows, shape.locations)), new(rows), new(rows), exponents_of(pairing))
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
    tile = tiles_of(pairing.src.device, dtype, shape.width).backward
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
