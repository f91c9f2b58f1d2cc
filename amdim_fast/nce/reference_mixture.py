"""Mixtures of global features in plain PyTorch: the judge of ``amdim_fast.nce.mixture``.

Our reading of arXiv:1906.00910, section 3.7, for which no code was released. Letters: K components,
B images, L locations, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amdim_fast.nce.reference import features_at, flatten_map, nce_log_prob, nce_loss

Maps = tuple[Tensor, Tensor, Tensor]


def responsibilities(log_prob: Tensor, tau: float) -> Tensor:
    """``q[j] = exp(tau s[j]) / sum_k exp(tau s[k])`` over the first dimension of [K, ...]."""
    shifted = tau * (log_prob - log_prob.detach().amax(0))
    return torch.exp(shifted) / torch.exp(shifted).sum(0)


def mixture_loss(
    components: Tensor,
    trg: Tensor,
    *,
    tau: float,
    alpha: float,
    clip: float | None = 20.0,
    posterior: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``-mean_{b,l} (sum_j q[j] s[j] + alpha H(q))`` of K components that predict one map.

    Args:
        components: [K, B, D]; each has its own denominator.
        trg: [B, L, D].
        tau: inverse temperature of the posterior.
        alpha: weight of its entropy.
        clip: bound on |score| in nats, or None.
        posterior: [K, B, L] to use as q, such as a detached one; computed if None.

    Returns:
        loss, the mean over components of mean_sq, and q [K, B, L].
    """
    log_prob, _, mean_sq = nce_log_prob(components, trg, clip=clip)
    q = responsibilities(log_prob, tau) if posterior is None else posterior
    expected = (q * log_prob).sum(0)
    entropy = -torch.special.xlogy(q, q).sum(0)
    return -(expected + alpha * entropy).mean(), mean_sq.mean(), q


def multiscale_mixture(
    maps_x1: Maps,
    maps_x2: Maps,
    locations: tuple[Tensor, Tensor],
    *,
    tau: float,
    alpha: float,
    clip: float | None = 10.0,
    reg_weight: float = 5e-2,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``reference.multiscale_nce`` with components in place of r1.

    Args:
        maps_x1: components [K, B, D], r5 [B, D, 5, 5] and r7 [B, D, 7, 7] of view 1.
        maps_x2: the same of view 2.
        locations: int64 [B] for view 1 and for view 2: location of the 5x5 source.
        tau: inverse temperature of the posterior.
        alpha: weight of its entropy.
        clip: bound on |score| in nats, or None.
        reg_weight: weight of each mean squared raw score, before the factor 0.5.

    Returns:
        loss_1t5, loss_1t7, loss_5t5 (each the mean of both directions) and the regularizer.
    """
    totals = []
    penalties = []
    directions = (maps_x1, maps_x2, locations[0]), (maps_x2, maps_x1, locations[1])
    for source, target, drawn in directions:
        r5, r7 = flatten_map(target[1]), flatten_map(target[2])
        loss_1t5, sq_1t5, _ = mixture_loss(source[0], r5, tau=tau, alpha=alpha, clip=clip)
        loss_1t7, sq_1t7, _ = mixture_loss(source[0], r7, tau=tau, alpha=alpha, clip=clip)
        loss_5t5, sq_5t5 = nce_loss(features_at(source[1], drawn), r5, clip=clip)
        totals.append((loss_1t5, loss_1t7, loss_5t5))
        penalties += [sq_1t5, sq_1t7, sq_5t5]
    loss_1t5, loss_1t7, loss_5t5 = (0.5 * (a + b) for a, b in zip(*totals, strict=True))
    return loss_1t5, loss_1t7, loss_5t5, 0.5 * reg_weight * torch.stack(penalties).sum()
