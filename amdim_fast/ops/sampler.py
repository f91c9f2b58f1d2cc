"""``amdim_fast::sample_views``, compiled: the draws of ``reference.sampling``, value for value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amdim_fast.ops import compiled
from amdim_fast.views import ViewParams, ViewPolicy


def sample_views(
    policy: ViewPolicy, sizes: Tensor, sample_index: Tensor, seed: int, views: int
) -> ViewParams:
    """Parameters [views, N] of what ``views.prepare_draw`` returned."""
    compiled.require("cpu")
    low, high = policy.scale or (0.0, 0.0)
    log_low, log_high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    amounts = (policy.brightness, policy.contrast, policy.saturation)
    factor_low = [max(0.0, 1.0 - amount) for amount in amounts]
    values = [
        *(float(policy.scale is not None), low, high - low),
        *(log_low, log_high - log_low, *policy.ratio),
        *(policy.max_translation, policy.translate_probability, policy.flip_probability),
        *(policy.jitter_probability, policy.gray_probability, *factor_low),
        *(1.0 + amount - start for amount, start in zip(amounts, factor_low, strict=True)),
        policy.hue,
    ]
    fields = torch.ops.amdim_fast.sample_views(
        sizes.contiguous(),
        sample_index.contiguous(),
        torch.tensor(values, dtype=torch.float64, device="cpu"),
        seed,
        views,
    )
    return ViewParams(*fields)
