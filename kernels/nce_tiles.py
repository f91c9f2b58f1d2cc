"""Tile sizes of the contrastive kernels as plain data: a tile per kernel, a set per table row."""

from __future__ import annotations

from typing import NamedTuple

import torch

# Widths up to here have rows of their own.
SMALL_WIDTH = 512


class Tile(NamedTuple):
    """Launch parameters of one kernel; sizes are powers of two.

    Attributes:
        rows: sources in a tile.
        columns: target locations in a tile.
        width: features per step of the product; 0 where no product is computed.
        swizzle: row tiles that run side by side over the same columns.
        warps: warps per program.
        stages: steps in flight.
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
        fused: whether the kernels compute the products themselves; else they read torch's.
        forward: tile of the fused forward.
        backward: tile of the fused backward.
        read_forward: tile of the forward over stored products.
        read_backward: tile of the backward over stored products.
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
