"""The tiles that ``benchmarks/autotune_nce.py`` measures: a short list, without hopeless ones."""

from __future__ import annotations

import itertools

from amdim_fast.kernels.nce_layout import DESCRIPTOR_CAPABILITY
from amdim_fast.kernels.nce_tiles import Tile

AREAS = ((64, 128), (128, 64), (128, 128), (64, 256), (128, 256))
# Features of a step by bytes of one: 64 and 128 bytes a row.
WIDTHS = {2: (32, 64), 4: (16, 32)}
WARPS = (4, 8)
STAGES = (3, 4)
SWIZZLE = 8
READ_FORWARD_AREAS = ((8, 256), (16, 128), (16, 256), (32, 128), (32, 256))
READ_BACKWARD_AREAS = ((4, 512), (8, 256), (8, 512), (16, 256), (16, 512))
# Of 255 registers, the products of a tile may take half; the epilogue needs the others.
PRODUCT_REGISTERS = 128
THREADS_PER_WARP = 32


def shared_bytes(tile: Tile, itemsize: int) -> int:
    """Shared memory of the steps in flight; the compiler takes no more than this and some bytes."""
    return tile.stages * (tile.rows + tile.columns) * tile.width * itemsize


def product_registers(tile: Tile) -> int:
    """Registers of a thread that hold float32 products."""
    return tile.rows * tile.columns // (tile.warps * THREADS_PER_WARP)


def fused_tiles(itemsize: int, capability: tuple[int, int], shared_limit: int) -> list[Tile]:
    """Tiles that multiply and fit the shared memory and the registers of a program."""
    loads = (False, True) if capability >= DESCRIPTOR_CAPABILITY else (False,)
    tiles = (
        Tile(*area, width, SWIZZLE, warps, stages, descriptors)
        for area, width, warps, stages, descriptors in itertools.product(
            AREAS, WIDTHS[itemsize], WARPS, STAGES, loads
        )
    )
    return [
        tile
        for tile in tiles
        if shared_bytes(tile, itemsize) <= shared_limit
        and PRODUCT_REGISTERS // 4 <= product_registers(tile) <= PRODUCT_REGISTERS
    ]


def read_tiles(field: str) -> list[Tile]:
    """Tiles of "read_forward" or "read_backward"."""
    areas = READ_FORWARD_AREAS if field == "read_forward" else READ_BACKWARD_AREAS
    return [Tile(*area, 0, SWIZZLE, warps, 1) for area, warps in itertools.product(areas, WARPS)]
