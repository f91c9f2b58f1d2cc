"""How view parameters are drawn, in plain PyTorch.

Draws are counter-based (Philox-4x32-10, Salmon et al. 2011), keyed by seed, sample index, view and
quantity: the parameters of a sample depend neither on its batch nor on the policy's other options.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amdim_fast.views.params import ViewParams, ViewPolicy
from amdim_fast.views.reference_philox import WORD_MASK, philox

_CROP_TRIES = 10
_FACTORS, _ORDER, _TRANSLATION, _CHANCES = range(_CROP_TRIES, _CROP_TRIES + 4)


def sample_views(
    policy: ViewPolicy, sizes: Tensor, sample_index: Tensor, seed: int, views: int
) -> ViewParams:
    """Parameters [views, N].

    Args:
        policy: the distribution.
        sizes: int64 [N, 2] on the CPU, height and width.
        sample_index: int64 [N] on the CPU.
        seed: 63 bits.
        views: V.
    """
    words = _draw_words(seed, sample_index, views)
    unit = words.double() * 2.0**-32
    chance, factor = unit[_CHANCES], unit[_FACTORS]

    def jitter_factor(index: int, amount: float) -> Tensor:
        low = max(0.0, 1.0 - amount)
        return (low + (1.0 + amount - low) * factor[..., index]).float()

    offsets = ((2 * policy.max_translation + 1) * words[_TRANSLATION, ..., :2]) >> 32
    moved = unit[_TRANSLATION, ..., 2:3] < policy.translate_probability
    flip = chance[:1, :, 0] < policy.flip_probability
    return ViewParams(
        crop=_crops(policy, sizes, words[:_CROP_TRIES], unit[:_CROP_TRIES]).int(),
        translate=((offsets - policy.max_translation) * moved).int(),
        flip=flip.repeat(views, 1),
        jitter=chance[..., 1] < policy.jitter_probability,
        order=words[_ORDER].argsort(stable=True).int(),
        brightness=jitter_factor(0, policy.brightness),
        contrast=jitter_factor(1, policy.contrast),
        saturation=jitter_factor(2, policy.saturation),
        hue=(policy.hue * (2.0 * factor[..., 3] - 1.0)).float(),
        gray=chance[..., 2] < policy.gray_probability,
    )


def _crops(policy: ViewPolicy, extent: Tensor, words: Tensor, unit: Tensor) -> Tensor:
    """The first of the tries [T, V, N, 4] that fits, else the central crop; int64 [V, N, 4]."""
    whole = extent.expand(words.shape[1], -1, -1)
    if policy.scale is None:
        return torch.cat([torch.zeros_like(whole), whole], -1)
    low, high = policy.scale
    log_low, log_high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    height, width = extent.double().unbind(-1)
    area = height * width * (low + (high - low) * unit[..., 0])
    ratio = _exponential(log_low + (log_high - log_low) * unit[..., 1])
    length = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], -1).long()
    fits = ((length >= 1) & (length <= extent)).all(-1)
    start = (words[..., 2:] * (extent - length + 1).clamp(min=1)) >> 32

    central_height = torch.minimum(height, (width / policy.ratio[0]).round())
    central_width = torch.minimum(width, (height * policy.ratio[1]).round())
    central = torch.stack([central_height, central_width], -1).long().clamp(min=1).expand_as(whole)
    fallback = torch.cat([(whole - central) // 2, central], -1)

    candidates = torch.cat([torch.cat([start, length], -1), fallback[None]])
    tries = torch.arange(_CROP_TRIES, device=fits.device).view(-1, 1, 1)
    first = torch.where(fits, tries, _CROP_TRIES).amin(0)
    return candidates.gather(0, first[None, ..., None].expand(1, -1, -1, 4))[0]


def _draw_words(seed: int, sample_index: Tensor, views: int) -> Tensor:
    """Four 32-bit words for every quantity, view and sample: int64 [Q, V, N, 4]."""
    quantity = torch.arange(_CROP_TRIES + 4, device="cpu").view(-1, 1, 1)
    view = torch.arange(views, device="cpu").view(1, -1, 1)
    counter = (sample_index & WORD_MASK, sample_index >> 32, view, quantity)
    return philox(torch.broadcast_tensors(*counter), (seed & WORD_MASK, seed >> 32))


def _exponential(x: Tensor) -> Tensor:
    """exp(x) to about 1e-13, in sums and products only, so that every machine draws the same."""
    y = x / 1024.0
    power = 1.0 + y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * (1.0 + y / 4.0 * (1.0 + y / 5.0))))
    for _ in range(10):
        power = power * power
    return power
