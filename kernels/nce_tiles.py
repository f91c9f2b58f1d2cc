"""What a row of the block table says: the tiles of the contrastive kernels, as plain data."""

from __future__ import annotations

from typing import NamedTuple

import torch

# Widths up to here have rows of their own.
SMALL_WIDTH = 512


class Tile(NamedTuple):
    """Launch of one kernel; sizes are powers of two.

    Attributes:
        rows: sources of a tile.
        columns: target locations of a tile.
        width: features a step of the product takes; 0 where no product is computed.
        group: row blocks that run side by side over the same columns.
        warps: warps a program.
        stages: steps in flight.
        descriptors: whether features are loaded through tensor descriptors (TMA) where they apply.
    """

    rows: int
    columns: int
    width: int
    group: int
    warps: int
    stages: int
    descriptors: bool = False


class Blocks(NamedTuple):
    """How one architecture computes one type and width.

    Attributes:
        fused: whether the kernels multiply themselves; else torch multiplies and they read scores.
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
    """'half' for float16 and bfloat16; for float32 'tf32' or 'ieee', as torch is set."""
    if dtype in (torch.float16, torch.bfloat16):
        return "half"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
