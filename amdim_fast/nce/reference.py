"""The contrastive objective in plain PyTorch, with all scores stored: the judge and the baseline.

Source: Bachman, Hjelm, Buchwalter 2019 (arXiv:1906.00910), section 3, and the algorithm of its
public code. Letters: S source sets, B source images, N = B target images, L locations, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ReferenceOutput(NamedTuple):
    """What ``nce_log_prob`` returns; the leading [S] is absent for a single source."""

    log_prob: Tensor  # [..., B, L]
    score: Tensor  # [..., B, L]
    mean_sq: Tensor  # [...]


def raw_scores(src: Tensor, trg: Tensor, scale: float | Tensor | None = None) -> Tensor:
    """``raw[.., b, n, l] = scale * <src[.., b], trg[n, l]>``; at least float32."""
    product = torch.einsum("...bd,nld->...bnl", src, trg)
    accumulated = product.to(torch.promote_types(product.dtype, torch.float32))
    return accumulated / math.sqrt(src.shape[-1]) if scale is None else accumulated * scale


def clip_scores(raw: Tensor, clip: float | None) -> Tensor:
    """``clip * tanh(raw / clip)``; None leaves the scores as they are."""
    return raw if clip is None else clip * torch.tanh(raw / clip)


def nce_log_prob(
    src: Tensor,
    trg: Tensor,
    *,
    clip: float | None = 20.0,
    negatives: str = "other_images",
    scale: float | Tensor | None = None,
    positive: Tensor | None = None,
) -> ReferenceOutput:
    """Log-probability of each image's own locations against the locations of all other images.

    Args:
        src: [B, D] or [S, B, D], any floating dtype.
        trg: [N, L, D], same dtype, N >= B; trg[b] holds the positives of src[b].
        clip: bound on |score| in nats, or None.
        negatives: "other_images" (all their locations) or "same_location" (only the same one).
        scale: of the products; None is 1 / sqrt(D).
        positive: int64 [B]: trg[positive[b]] holds them instead, or None.

    Returns:
        log_prob and score [..., B, L], mean_sq [...]; float32 or wider, all differentiable.

    Stores a dozen tensors of B * N * L elements: as in the public code, float masks select own and
    other images and a maximum is subtracted. Unlike there, any clip is stable.
    """
    raw = raw_scores(src, trg, scale)
    mean_sq = raw.square().mean(dim=(-3, -2, -1))
    scores = clip_scores(raw, clip)
    own = torch.eye(trg.shape[0], dtype=scores.dtype, device=trg.device)[:, :, None]
    own = own[: src.shape[-2]] if positive is None else own[positive]
    is_own = own.expand_as(scores)
    is_other = 1.0 - is_own
    score = (is_own * scores).sum(dim=-2)
    if trg.shape[0] == 1:
        return ReferenceOutput(0.0 * score, score, mean_sq)
    lowest = scores.detach().abs().max() if clip is None else clip
    others = is_other * scores - lowest * is_own
    dims = (-2,) if negatives == "same_location" else (-2, -1)
    shift = others.detach().amax(dim=dims, keepdim=True)
    total = (is_other * torch.exp(others - shift)).sum(dim=dims, keepdim=True)
    neg = (shift + torch.log(total)).squeeze(-2)
    log_prob = score - torch.logaddexp(score, neg)
    return ReferenceOutput(log_prob, score, mean_sq)


def nce_loss(
    src: Tensor,
    trg: Tensor,
    *,
    clip: float | None = 20.0,
    negatives: str = "other_images",
    scale: float | Tensor | None = None,
    positive: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``-mean(log_prob)`` over images and locations, and ``mean_sq``; both [...]."""
    output = nce_log_prob(src, trg, clip=clip, negatives=negatives, scale=scale, positive=positive)
    return -output.log_prob.mean(dim=(-2, -1)), output.mean_sq


def flatten_map(feature_map: Tensor) -> Tensor:
    """[B, D, h, w] feature map -> [B, h*w, D]."""
    return feature_map.flatten(2).transpose(1, 2)


def features_at(feature_map: Tensor, locations: Tensor) -> Tensor:
    """[B, D] of [B, D, h, w] at one row-major location per image; ``locations`` is int64 [B]."""
    rows = torch.arange(feature_map.shape[0], device=feature_map.device)
    return flatten_map(feature_map)[rows, locations]


def multiscale_nce(
    maps_x1: tuple[Tensor, Tensor, Tensor],
    maps_x2: tuple[Tensor, Tensor, Tensor],
    locations: tuple[Tensor, Tensor],
    *,
    clip: float | None = 10.0,
    reg_weight: float = 5e-2,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The six costs of AMDIM on r1 [B,D,1,1], r5 [B,D,5,5] and r7 [B,D,7,7] of two views.

    Args:
        maps_x1: r1, r5, r7 of view 1.
        maps_x2: r1, r5, r7 of view 2.
        locations: int64 [B] for view 1 and for view 2: location of the 5x5 source.
        clip: bound on |score| in nats, or None.
        reg_weight: weight of each mean squared raw score, before the factor 0.5.

    Returns:
        loss_1t5, loss_1t7, loss_5t5 (each the mean of both directions) and the regularizer.
    """
    totals = []
    penalties = []
    directions = (maps_x1, maps_x2, locations[0]), (maps_x2, maps_x1, locations[1])
    for source, target, drawn in directions:
        r1 = source[0].flatten(1)
        r5 = features_at(source[1], drawn)
        costs = [(r1, target[1]), (r1, target[2]), (r5, target[1])]
        results = [nce_loss(src, flatten_map(trg), clip=clip) for src, trg in costs]
        totals.append([loss for loss, _ in results])
        penalties += [mean_sq for _, mean_sq in results]
    loss_1t5, loss_1t7, loss_5t5 = (0.5 * (a + b) for a, b in zip(*totals, strict=True))
    return loss_1t5, loss_1t7, loss_5t5, 0.5 * reg_weight * torch.stack(penalties).sum()
