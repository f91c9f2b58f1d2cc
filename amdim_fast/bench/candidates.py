"""Tiles of the contrastive kernels that are worth measuring on a GPU."""

from __future__ import annotations

from itertools import product

import torch

from amdim_fast.kernels import nce_tile_table
from amdim_fast.kernels.nce_layout import DESCRIPTOR_CAPABILITY
from amdim_fast.kernels.nce_tiles import Tile, TileSet

FIELDS = ("forward", "read_forward", "backward", "read_backward")
AREAS = ((64, 128), (128, 64), (128, 128), (64, 256), (128, 256), (256, 128))
# Over stored products one program does one row, some columns at a time.
READ_COLUMNS, READ_WARPS = (512, 1024, 2048, 4096), (4, 8, 16)
# Features of a step by bytes of one: 64 and 128 bytes a row.
WIDTHS = {2: (32, 64), 4: (16, 32)}
WARPS, STAGES, SWIZZLE = (4, 8), (3, 4), 8
# Products a thread holds: of its 255 registers at most half, since the epilogue needs the others.
PRODUCTS, THREADS_PER_WARP = (32, 128), 32


def is_read(field: str) -> bool:
    """Whether the tile of a field is for stored products."""
    return field.startswith("read")


def shared_bytes(tile: Tile, itemsize: int) -> int:
    """Shared memory of the steps in flight; the compiler takes a few bytes more at most."""
    return tile.stages * (tile.rows + tile.columns) * tile.width * itemsize


def fused_tiles(itemsize: int, capability: tuple[int, int], shared_limit: int) -> list[Tile]:
    """Tiles that compute products and fit the shared memory and the registers of a program."""
    loads = (False, True) if capability >= DESCRIPTOR_CAPABILITY else (False,)
    found = (
        Tile(*area, width, SWIZZLE, warps, stages, descriptors)
        for area, width, warps, stages, descriptors in product(
            AREAS, WIDTHS[itemsize], WARPS, STAGES, loads
        )
        if PRODUCTS[0] <= area[0] * area[1] // (warps * THREADS_PER_WARP) <= PRODUCTS[1]
    )
    return [tile for tile in found if shared_bytes(tile, itemsize) <= shared_limit]


def read_tiles() -> list[Tile]:
    """Tiles over stored products."""
    shapes = product(READ_COLUMNS, READ_WARPS)
    return [Tile(1, columns, 0, 1, warps, 1) for columns, warps in shapes]


def candidates_of(
    dtype: torch.dtype, capability: tuple[int, int], start: TileSet
) -> dict[str, list[Tile]]:
    """What is tried on a GPU of this capability, by field, the tiles of the built-in row first."""
    architecture = nce_tile_table.ARCHITECTURES.get(capability, "default")
    limit = nce_tile_table.SHARED_BYTES[architecture]
    fused = fused_tiles(dtype.itemsize, capability, limit)
    tried = {field: read_tiles() if is_read(field) else fused for field in FIELDS}
    return {field: list(dict.fromkeys([getattr(start, field), *tried[field]])) for field in FIELDS}
