"""The soft clip in torch: score = clip * tanh(raw / clip), its exponential and its slope.

The shifted form needs no running maximum: with ``v = sigmoid(-2 raw / clip)`` the score is
``clip - 2 clip v``, its slope ``4 v (1 - v)``, and ``exp(score - clip)`` cannot overflow. It works
on stored scores ``-2 raw / clip``; without it, stored scores are the raw ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# exp(-2 clip) is a normal float32 up to here; beyond, and without a clip, the maximum is tracked.
LARGEST_SHIFTED_CLIP = 43.0
# exp2 instead of exp: torch's CPU exp is several times slower where it calls MKL.
LOG2_E = math.log2(math.e)


def clip_value(clip: Any) -> Any:
    """The clip as the op takes it; a huge one is None, and a graph's may be a tensor."""
    if isinstance(clip, int | float):
        # Scores over the clip are numbers of float32. A graph of any size would take the name of a
        # constant for a number that may change, find that it does not, and be traced again.
        return None if clip >= 1e30 else float(clip)
    if clip is None:
        return None
    if torch.compiler.is_compiling():
        return torch.as_tensor(clip, dtype=torch.float64)
    return clip_value(float(clip))


def shifted_clip(clip: float | None) -> float | None:
    """The clip where ``exp(score - clip)`` is safe without a maximum, else None."""
    return clip if clip is not None and clip <= LARGEST_SHIFTED_CLIP else None


def clipped(raw: Tensor, clip: float | None) -> Tensor:
    """The score of a raw score; None leaves it as it is."""
    return raw if clip is None else clip * torch.tanh(raw / clip)


def write_clipped(out: Tensor, raw: Tensor, clip: float | None) -> None:
    """``out = clipped(raw, clip)``; out may be raw."""
    if clip is None:
        out.copy_(raw)
    else:
        torch.div(raw, clip, out=out).tanh_().mul_(clip)


def write_slope(out: Tensor, score: Tensor, clip: float | None) -> None:
    """``out = d score / d raw`` from the score."""
    if clip is None:
        out.fill_(1.0)
    else:
        torch.div(score, clip, out=out).square_().neg_().add_(1.0)


def write_exp_shifted(out: Tensor, stored: Tensor, clip: float) -> None:
    """``out = exp(score - clip)`` in the shifted form; out may be stored."""
    torch.sigmoid(stored, out=out).mul_(-2.0 * clip * LOG2_E).exp2_()


def add_exp_(total: Tensor, largest: Tensor, scores: Tensor, dims: tuple[int, ...]) -> None:
    """Add ``exp(scores - largest)`` over dims to totals, once the largest scores are up to date.

    From 0 and -inf on, ``log_total`` makes ``logsumexp`` of all scores. They are overwritten.
    """
    before = largest.clone()
    torch.maximum(largest, scores.amax(dims), out=largest)
    shift = _finite(largest)
    total.mul_(before.sub_(shift).mul_(LOG2_E).exp2_())
    total.add_(scores.sub_(shift).mul_(LOG2_E).exp2_().sum(dims))


def log_total(total: Tensor, largest: Tensor) -> Tensor:
    """``logsumexp`` of the scores of ``add_exp_``."""
    return total.log() + _finite(largest)


def _finite(largest: Tensor) -> Tensor:
    return largest.masked_fill(largest.isinf(), 0.0)


def write_grad_negatives(
    out: Tensor, scratch: Tensor, stored: Tensor, weight: Tensor, neg: Tensor, clip: float | None
) -> None:
    """``out = weight * exp(score - neg) * d score / d raw`` for a block of stored scores.

    out and scratch have the shape of stored, to which weight and neg broadcast; scratch is
    overwritten.
    """
    shifted = shifted_clip(clip)
    if shifted is not None:
        torch.sigmoid(stored, out=scratch)
        torch.addcmul(scratch, scratch, scratch, value=-1.0, out=out)
        exponent = LOG2_E * (shifted - neg)
        torch.add(exponent, scratch, alpha=-2.0 * shifted * LOG2_E, out=scratch).exp2_()
        out.mul_(scratch).mul_(4.0 * weight)
    elif clip is None:
        torch.sub(stored, neg, out=out).mul_(LOG2_E).exp2_().mul_(weight)
    else:
        write_clipped(scratch, stored, clip)
        write_slope(out, scratch, clip)
        scratch.sub_(neg).mul_(LOG2_E).exp2_()
        out.mul_(scratch).mul_(weight)
