"""Nearest neighbours by cosine similarity, and classification by their weighted vote."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SIMILARITIES_AT_ONCE = 1 << 25


class Neighbours(NamedTuple):
    """The k nearest rows for each query, nearest first: cosine similarity and index, [M, k]."""

    similarities: Tensor
    indices: Tensor


def nearest(bank: Tensor, queries: Tensor, k: int) -> Neighbours:
    """The k rows of ``bank`` most similar to each query.

    Args:
        bank: [N, D], floating point.
        queries: [M, D], same dtype and device.
        k: 1 to N.

    Raises:
        ValueError: k is out of range.

    Holds 2^25 similarities at a time.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}; it must be from 1 to {len(bank)}, the rows of the bank")
    bank = F.normalize(bank, dim=1)
    rows = max(1, _SIMILARITIES_AT_ONCE // len(bank))
    parts = [(F.normalize(part, dim=1) @ bank.T).topk(k, dim=1) for part in queries.split(rows)]
    return Neighbours(
        torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
    )


def vote(neighbours: Neighbours, labels: Tensor, n_classes: int, temperature: float) -> Tensor:
    """Scores [M, n_classes]: each neighbour votes for its class with exp(similarity / temperature).

    Each row is scaled so that the nearest neighbour's vote is 1. Source: arXiv:1805.01978,
    section 3.4.

    Args:
        neighbours: of M queries.
        labels: int64 [N], of the bank.
        n_classes: number of classes.
        temperature: in units of similarity, above 0.

    Raises:
        ValueError: the temperature is out of range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    similarities, indices = neighbours
    votes = ((similarities - similarities[:, :1]) / temperature).exp()
    scores = votes.new_zeros(len(votes), n_classes)
    return scores.scatter_add_(1, labels[indices], votes)
