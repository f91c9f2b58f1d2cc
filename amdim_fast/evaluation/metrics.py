"""Accuracy and confusion of class scores."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of rows, 0..1, whose label is among the k best scores.

    Equal scores are ranked by class number, so constant scores are no better than chance.

    Args:
        scores: [M, n_classes].
        labels: int64 [M].
        k: 1 or more; with n_classes or more the result is 1.
    """
    own = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    return float((before.sum(1) < k).double().mean())


def confusion_counts(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """int64 [n_classes, n_classes]: images of the row's class, by the class predicted."""
    cells = labels * n_classes + predicted
    return cells.bincount(minlength=n_classes**2).view(n_classes, n_classes)
