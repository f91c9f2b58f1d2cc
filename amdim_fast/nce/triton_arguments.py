"""What the launches of the contrastive kernels share: the clip, modes of gradients, and sizes."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.kernels import nce_clip, nce_rows
from amdim_fast.kernels.nce_tiles import TileSet
from amdim_fast.nce import tiles
from amdim_fast.nce.clip import LOG2_E, shifted_clip
from amdim_fast.nce.pairing import Pairing

NONE, OBJECTIVE, RESULTS = (
    mode.value for mode in (nce_rows.NO_GRADIENTS, nce_rows.OF_OBJECTIVE, nce_rows.OF_RESULTS)
)


class Clip(NamedTuple):
    """The clip as kernels take it; see ``kernels.nce_clip``."""

    mode: int
    steep: float
    depth: float
    inverse: float


@functools.cache
def clip_arguments(clip: float | None, scale: float) -> Clip:
    """SHIFTED, TANH or NO_CLIP, with its factors for products with this scale."""
    if clip is None:
        return Clip(nce_clip.NO_CLIP.value, 0.0, 0.0, 0.0)
    if shifted_clip(clip) is None:
        return Clip(nce_clip.TANH.value, scale / clip, clip, 1.0 / clip)
    steep, depth = 2.0 * LOG2_E * scale / clip, -2.0 * LOG2_E * clip
    return Clip(nce_clip.SHIFTED.value, steep, depth, 1.0 / clip)


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability; None on a CPU, where the interpreter runs the kernels."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def tiles_of(device: torch.device, dtype: torch.dtype, width: int) -> TileSet:
    """The tiles of a device for a type and a width D."""
    return tiles.choose(capability_of(device), dtype, width)


def exponents_of(pairing: Pairing) -> Tensor | None:
    """Room for the power of two on each row of float16 gradients."""
    if pairing.src.dtype != torch.float16:
        return None
    return pairing.src.new_empty(pairing.shape.rows, dtype=torch.float32)


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below ``count``."""
    return 1 << (count - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)
