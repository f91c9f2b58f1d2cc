"""Launches of the row kernel; all but their tensors is worked out once for each signature."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from amdim_fast.kernels import nce_rows as kernels
from amdim_fast.kernels.launch import Prepared
from amdim_fast.kernels.nce_tiles import Tile, TileSet
from amdim_fast.nce.pairing import Options
from amdim_fast.nce.plan import ROW_UNIT, PairingShape
from amdim_fast.nce.triton_arguments import clip_arguments, power_of_two, processors_and_cache

MOST_LAUNCHES = 4096
# Rows of products that are read twice stay in this share of the L2 in between.
L2_SHARE = 0.55
RESIDENT_WARPS, THREAD_COLUMNS = 16, 16


class Places(NamedTuple):
    """Where the rows of a chunk lie.

    Attributes:
        first_row: in their pairing.
        first_set: of the pairing, in the call.
        first_own: of the pairing, in flat own scores.
        first_sum: of the pairing, in flat log-sums.
        image_offset: the own image of source b is target b + image_offset of the chunk's.
    """

    first_row: int
    first_set: int
    first_own: int
    first_sum: int
    image_offset: int


@functools.lru_cache(MOST_LAUNCHES)
def rows_launch(
    shape: PairingShape,
    options: Options,
    places: Places,
    tiles: TileSet,
    *,
    images: int,
    rows: int,
    scores_units: int,
    grads_units: int,
    limit_units: int,
    statistics: bool,
    gradients: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Prepared:
    """``nce_rows`` for ``rows`` rows of products with ``images`` target images.

    Strides and columns in memory are in units of ``ROW_UNIT`` entries; ``dtype`` is the inputs'.
    """
    scale = 1.0 / math.sqrt(shape.width)
    clip = clip_arguments(options.clip, scale)
    own = power_of_two(shape.locations)
    tile, programs = tiles.read_forward, rows
    if gradients:
        tile, programs = resident(tiles.read_backward, rows, limit_units * ROW_UNIT * 4, device)
    columns = min(tile.columns, max(16, power_of_two(images * shape.locations)))
    return Prepared(
        kernels.nce_rows,
        (programs,),
        (
            rows,
            *places[:4],
            shape.images,
            images,
            shape.locations,
            places.image_offset,
            options.parts,
            scores_units,
            grads_units,
            limit_units,
            options.loss_weight,
            options.mean_sq_weight,
            1.0 / (shape.images * shape.locations),
            1.0 / (shape.images * shape.columns),
            scale,
            clip.steep,
            clip.depth,
            clip.inverse,
        ),
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


def resident(tile: Tile, rows: int, row_bytes: int, device: torch.device) -> tuple[Tile, int]:
    """Tile and number of programs with which the rows in work fit the L2 cache of a GPU.

    Rows are read a second time for their gradients. Where all of them fit, or not even one for each
    multiprocessor, there is a program for each row.
    """
    processors, cache_bytes = processors_and_cache(device)
    fitting = int(L2_SHARE * cache_bytes) // row_bytes
    share = fitting // processors
    if share == 0 or fitting >= rows:
        return tile, rows
    warps = min(RESIDENT_WARPS, max(4, 1 << (2 * RESIDENT_WARPS // share).bit_length() - 1))
    columns = warps * 32 * THREAD_COLUMNS
    return tile._replace(columns=columns, warps=warps), share * processors
