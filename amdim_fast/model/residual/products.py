"""Launches of matrix products of half types that end with a sum or with the mask of a ReLU."""

from __future__ import annotations

import torch
from torch import Tensor

from amdim_fast.kernels import launch, residual
from amdim_fast.kernels.nce_tile_table import ARCHITECTURES
from amdim_fast.kernels.nce_tiles import Tile
from amdim_fast.nce.triton_arguments import capability_of, ceil_div

# Layers of at most so many channels take these products, wider ones the library's; 0: none does.
PRODUCT_CHANNELS = 768
TILES = {
    "sm_80": Tile(128, 128, 32, 1, 8, 3),
    "sm_90": Tile(128, 128, 64, 1, 8, 3, descriptors=True),
    "sm_100": Tile(128, 128, 64, 1, 8, 3, descriptors=True),
    "default": Tile(128, 128, 32, 1, 8, 3),
}
MOST_ROWS = 2**31 - 2**10
UNIT = residual.CHANNEL_UNIT.value
POINTER_BYTES = 16
ADD, MASK = residual.ADD.value, residual.MASK.value


def takes(a: Tensor, b: Tensor, other: Tensor) -> bool:
    """Whether ``product`` multiplies these, and layers this wide are to be multiplied by it."""
    sizes = b.shape
    return (
        max(sizes) <= PRODUCT_CHANNELS
        and all(size % UNIT == 0 for size in sizes)
        and 0 < len(a) <= MOST_ROWS
        and a.dtype == b.dtype == other.dtype
        and (b.is_contiguous() or b.t().is_contiguous())
        and a.is_contiguous()
        and other.is_contiguous()
        and all(tensor.data_ptr() % POINTER_BYTES == 0 for tensor in (a, b, other))
    )


def product(a: Tensor, b: Tensor, other: Tensor, epilogue: int) -> Tensor:
    """``a @ b`` [M, N] with an epilogue, accumulated in float32 and rounded once.

    Args:
        a: [M, K], as ``other`` contiguous; all of one half type, as ``takes`` wants them.
        b: [K, N], contiguous, or the transpose of what is.
        other: [M, N]; ADD adds it, MASK gives 0 where it is not positive.
        epilogue: ADD or MASK.

    Deterministic. Takes no memory but the result's.
    """
    (rows, width), columns = a.shape, b.shape[1]
    out = torch.empty((rows, columns), dtype=a.dtype, device=a.device)
    tile = tile_of(a.device)
    transposed = not b.is_contiguous()
    weight = b.t() if transposed else b
    matrices: tuple[object, ...] = a, weight, other, out
    if tile.descriptors:
        block = [tile.columns, tile.width] if transposed else [tile.width, tile.columns]
        end = [tile.rows, tile.columns]
        matrices = (
            residual.descriptor(a, [tile.rows, tile.width]),
            residual.descriptor(weight, block),
            residual.descriptor(other, end),
            residual.descriptor(out, end),
        )
    launch.launch(
        residual.residual_product,
        (ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns),),
        *matrices,
        rows,
        width // UNIT,
        columns // UNIT,
        EPILOGUE=epilogue,
        TRANSPOSED=transposed,
        TILE_ROWS=tile.rows,
        TILE_COLUMNS=tile.columns,
        TILE_WIDTH=tile.width,
        SWIZZLE_ROWS=tile.swizzle,
        DESCRIPTORS=tile.descriptors,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def tile_of(device: torch.device) -> Tile:
    """The tile of a device."""
    capability = capability_of(device)
    return TILES[ARCHITECTURES.get(capability, "default") if capability else "default"]
