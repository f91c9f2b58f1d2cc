"""Launches of the row kernel; all but their tensors is worked out once for each signature."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from amdim_fast.kernels import nce_rows as kernels
from amdim_fast.kernels.launch import Prepared
from amdim_fast.kernels.nce_tiles import TileSet
from amdim_fast.nce.pairing import Options
from amdim_fast.nce.triton_arguments import clip_arguments, power_of_two
from amdim_fast.nce.way import PairingShape

MOST_LAUNCHES = 4096


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

    Strides and columns in memory are in units of 16 entries; ``dtype`` is the inputs'.
    """
    scale = 1.0 / math.sqrt(shape.width)
    clip = clip_arguments(options.clip, scale)
    own = power_of_two(shape.locations)
    tile = tiles.read_backward if gradients else tiles.read_forward
    columns = min(tile.columns, max(16, power_of_two(images * shape.locations)))
    return Prepared(
        kernels.nce_rows,
        (rows,),
        (
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
