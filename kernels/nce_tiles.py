"""Tile sizes of the contrastive kernels as plain data: a tile per kernel, a set per table row."""

from __future__ import annotations

from typing import NamedTuple

import torch

# Widths up to here have rows of their own.
SMALL_WIDTH = 512


class Tile(NamedTuple):
    """Launch parameters of one kernel; sizes are powers of two.

    Over stored products a program has one row, and only columns and warps count.

    Attributes:
        rows: sources in a tile; 1 over stored products.
        columns: target locations in a tile.
        width: features per step of the product; 0 over stored products.
        swizzle: row tiles that run side by side over the same columns; 1 over stored products.
        warps: warps per program.
        stages: steps in flight; 1 over stored products.
        descriptors: whether to load features through tensor descriptors (TMA) where possible.
    """

    rows: int
    columns: int
    width: int
    swizzle: int
    warps: int
    stages: int
    descriptors: bool = False


class TileSet(NamedTuple):
    """How one architecture computes one type and width: a row of the tile table.

    Attributes:
        fused: whether kernels may compute products themselves; else torch always does.
        forward: tile of the fused forward.
        backward: tile of the fused backward.
        read_forward: tile of ``nce_rows`` without gradients.
        read_backward: tile of ``nce_rows`` with gradients.
    """

    fused: bool
    forward: Tile
    backward: Tile
    read_forward: Tile
    read_backward: Tile


def arithmetic(dtype: torch.dtype) -> str:
    """'half' for float16 and bfloat16; 'tf32' or 'ieee' for float32, by torch's own setting."""
    if dtype in (torch.float16, torch.bfloat16):
        return "half"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
