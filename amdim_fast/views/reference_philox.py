"""Philox-4x32-10, the counter-based random generator (Salmon et al. 2011), on int64 tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WORD_MASK = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> Tensor:
    """Philox-4x32-10: four int64 tensors [...] of 32-bit counter words to random words [..., 4]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD_MASK, (k1 + 0xBB67AE85) & WORD_MASK
    return torch.stack([c0, c1, c2, c3], -1)


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low half of a 64-bit product, in steps that never pass the sign bit of int64."""
    upper = word * (constant >> 16)
    lower = word * (constant & 0xFFFF)
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & WORD_MASK
    return high, low
