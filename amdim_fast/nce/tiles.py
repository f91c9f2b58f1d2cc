"""The tiles of a call: rows measured on the user's own GPU first, then the built-in ones."""

from __future__ import annotations

import torch

from amdim_fast.kernels.nce_tile_table import architecture_of, built_in
from amdim_fast.kernels.nce_tiles import SMALL_WIDTH, TileSet, arithmetic
from amdim_fast.nce.tile_file import Key, measured_rows


def choose(capability: tuple[int, int] | None, dtype: torch.dtype, width: int) -> TileSet:
    """The row for a compute capability (None in the interpreter), a type and a width D.

    A row for exactly this capability in the file that AMDIM_FAST_BLOCKS names comes first.
    """
    if capability is not None:
        key = Key(architecture_of(capability), arithmetic(dtype), width <= SMALL_WIDTH)
        measured = measured_rows().get(key)
        if measured is not None:
            return measured
    return built_in(capability, dtype, width)
