"""``score_blocks`` by the compiled library: in one pass, without memory of the scores' size."""

from __future__ import annotations

import torch
from torch import Tensor

from amdim_fast.nce.clip import shifted_clip
from amdim_fast.nce.score_blocks import Block, RowTerms
from amdim_fast.optional import load_cpu


def why_not(device: torch.device, dtype: torch.dtype, clip: float | None) -> str | None:
    """Why torch operations do it for scores of this dtype; None where the library does."""
    if device.type != "cpu":
        return f"the scores are on {device.type}"
    if dtype != torch.float32:
        return "the scores are float64"
    if clip is not None and shifted_clip(clip) is None:
        return f"a clip of {clip:g} takes a maximum"
    return None if load_cpu() else "the compiled library is not built"


def sums(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """As ``score_blocks.sums``."""
    pairing, stored = block.pairing, block.stored
    count = stored.shape[1]
    own = stored.new_zeros((count, pairing.shape.locations))
    neg = stored.new_empty((pairing.softmaxes, count))
    square = stored.new_empty(count)
    torch.ops.amdim_fast.score_sums_(neg, square, own, stored, *_place(block))
    return own, neg, square


def write_gradients(out: Tensor, block: Block, of: RowTerms) -> None:
    """As ``score_blocks.write_gradients``."""
    own, penalty = of.own.contiguous(), of.penalty.contiguous()
    weight, neg = of.weight.t().contiguous(), of.neg.t().contiguous()
    torch.ops.amdim_fast.score_gradients_(
        out, block.stored, own, weight, neg, penalty, *_place(block)
    )


def _place(block: Block) -> tuple[int, int, int, float | None]:
    """Sources of a set, the block's first row, the own image of source 0 in the block; the clip."""
    pairing = block.pairing
    offset = pairing.image_offset - block.first_image
    return pairing.shape.images, block.first_row, offset, pairing.options.clip
