"""Probes: a linear and an MLP classifier on detached global features, and their loss.

Source: arXiv:1906.00910, section 4, and the public code's ``model.Evaluator`` and
``costs.loss_xent``; the module names are those of its checkpoints.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amdim_fast.checks import whole_number

LOGIT_CLIP = 10.0
LOGIT_PENALTY = 1e-3
IGNORED_LABEL = -1


class ProbeOutput(NamedTuple):
    """Logits of the two probes, [B, n_classes] each."""

    logits_mlp: Tensor
    logits_linear: Tensor


class _Classifier(nn.Module):
    """A classifier under the name that it has in checkpoints."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block_forward = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, n_classes]."""
        return self.block_forward(features)


class Probes(nn.Module):
    """A linear and an MLP probe; no gradient flows back to the features.

    Linear: D -> classes. MLP: dropout 0.2, D -> 1024 without bias, BatchNorm, ReLU, dropout 0.2,
    -> classes.

    Args:
        n_rkhs: D, width of the features.
        n_classes: number of classes.

    Raises:
        ValueError: an argument is not a whole number, 1 or more.

    Attributes:
        class_names: of the classes, in the order of their labels; None where nobody has set them.
            Stored in checkpoints.
    """

    hidden = 1024
    dropout = 0.2

    def __init__(self, n_rkhs: int, n_classes: int) -> None:
        super().__init__()
        whole_number("n_rkhs", n_rkhs)
        whole_number("n_classes", n_classes)
        self.n_rkhs, self.n_classes = n_rkhs, n_classes
        self.class_names: tuple[str, ...] | None = None
        self.block_glb_mlp = _Classifier(
            nn.Dropout(self.dropout),
            nn.Linear(n_rkhs, self.hidden, bias=False),
            nn.BatchNorm1d(self.hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, n_classes),
        )
        # Checkpoints number the linear layer 2: the public code has a dropout of 0 before it.
        self.block_glb_lin = _Classifier(nn.Identity(), nn.Linear(n_rkhs, n_classes))

    def forward(self, r1: Tensor) -> ProbeOutput:
        """Classify global features.

        Args:
            r1: [B, D, 1, 1] or [B, D], floating point; converted to the probes' dtype. B must be
                2 or more in training, for BatchNorm.

        Returns:
            logits_mlp and logits_linear, [B, n_classes] each.

        Raises:
            ValueError: the shape is wrong.
        """
        if r1.ndim < 2 or r1.shape[1] != self.n_rkhs or r1[:1].numel() > self.n_rkhs:
            raise ValueError(
                f"r1 has shape {list(r1.shape)}; it must be [B, {self.n_rkhs}, 1, 1] or "
                f"[B, {self.n_rkhs}]"
            )
        if self.block_glb_mlp.block_forward[3].training and r1.shape[0] < 2:
            raise ValueError(f"r1 has {r1.shape[0]} rows; it must have 2 or more in training")
        features = r1.detach().flatten(1).to(next(self.parameters()).dtype)
        return ProbeOutput(self.block_glb_mlp(features), self.block_glb_lin(features))


def probe_loss(logits: Tensor, labels: Tensor, count: Tensor | None = None) -> Tensor:
    """Cross entropy of softly clipped logits, with a penalty on large ones.

    Equals ``F.cross_entropy(10 * tanh(logits / 10), labels) + 1e-3 * (logits ** 2).mean()``.

    Args:
        logits: [B, n_classes] of one probe, or [P, B, n_classes] of several, any floating dtype;
            converted to float32.
        labels: [B] int64, 0 ... n_classes - 1. Rows labeled -1 do not count in the cross
            entropy, but do in the penalty.
        count: divisor of the summed cross entropies; None is the number of labels other than -1.
            Several processes pass the mean of their counts.

    Returns:
        float32 scalar, or [P]. If every label is -1 it is the penalty (the public code gives NaN).

    Raises:
        ValueError: the shapes disagree. TypeError: labels are not integers.
    """
    if logits.ndim not in (2, 3) or labels.shape != logits.shape[-2:-1]:
        raise ValueError(
            f"logits have shape {list(logits.shape)} and labels {list(labels.shape)}; "
            "they must be [B, n_classes] or [P, B, n_classes], and [B]"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"labels are {labels.dtype}; they must be torch.int64")
    logits = logits.float()
    clipped = LOGIT_CLIP * torch.tanh(logits / LOGIT_CLIP)
    targets = labels.expand(logits.shape[:-1]).flatten()
    costs = F.cross_entropy(
        clipped.flatten(0, -2), targets, ignore_index=IGNORED_LABEL, reduction="none"
    )
    if count is None:
        count = (labels != IGNORED_LABEL).sum().clamp(min=1)
    total = costs.view(logits.shape[:-1]).sum(-1)
    return total / count + LOGIT_PENALTY * logits.square().mean((-2, -1))
