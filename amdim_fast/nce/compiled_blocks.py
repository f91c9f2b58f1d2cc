"""``score_blocks`` by the compiled library: in one pass, without memory of the scores' size."""

from __future__ import annotations

import torch
from torch import Tensor

from amdim_fast.nce.clip import LOG2_E, shifted_clip
from amdim_fast.nce.score_blocks import Block, Gradients
from amdim_fast.optional import load_cpu


def why_not(device: torch.device, dtype: torch.dtype, clip: float | None) -> str | None:
    """Why torch operations do it for scores of this dtype; None where the library does."""
    if device.type != "cpu":
        return f"the scores are on {device.type}"
    if dtype != torch.float32:
        return "the scores are float64"
    if shifted_clip(clip) is None:
        return "scores have no clip" if clip is None else f"a clip of {clip:g} takes a maximum"
    return None if load_cpu() else "the compiled library is not built"


def sums(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """As ``score_blocks.sums``."""
    pairing, stored = block.pairing, block.stored
    own = stored.new_zeros((stored.shape[1], pairing.shape.locations))
    found = stored.new_empty((pairing.softmaxes + 1, stored.shape[1]))
    torch.ops.amdim_fast.score_sums_(found, own, stored, *_place(block), _clip(block))
    return own, found[:-1].log_().add_(_clip(block)), found[-1]


def write_gradients(out: Tensor, block: Block, of: Gradients) -> None:
    """As ``score_blocks.write_gradients``."""
    weight = 4.0 * of.weight.t()
    exponent = LOG2_E * (_clip(block) - of.neg.t())
    torch.ops.amdim_fast.score_gradients_(
        out,
        block.stored,
        of.own.contiguous(),
        weight.contiguous(),
        exponent.contiguous(),
        of.penalty.contiguous(),
        *_place(block),
        _clip(block),
    )


def _place(block: Block) -> tuple[int, int, int]:
    """Sources of a set, the block's first row, and the own image of source 0, in the block."""
    pairing = block.pairing
    return pairing.shape.images, block.first_row, pairing.image_offset - block.first_image


def _clip(block: Block) -> float:
    clip = block.pairing.options.clip
    assert clip is not None
    return clip
