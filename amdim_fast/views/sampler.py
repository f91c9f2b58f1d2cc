"""``amdim_fast::sample_views``, compiled: the draws of ``reference.sampling``, value for value.

``amdim_fast::draw_views`` also checks its arguments and draws the seed, so that graphs of
torch.compile can hold it: the same parameters as in eager execution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amdim_fast.views import library as compiled
from amdim_fast.views.library import LIBRARY
from amdim_fast.views.params import VIEW_FIELDS, ViewParams, ViewPolicy, prepare_draw

_MAX_TRANSLATION = 7

LIBRARY.define(
    "draw_views(Tensor sizes, Tensor? sample_index, float[] policy, int views) -> "
    f"({', '.join(f'Tensor {name}' for name in VIEW_FIELDS)})",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded),
)


def sample_views(
    policy: ViewPolicy, sizes: Tensor, sample_index: Tensor, seed: int, views: int
) -> ViewParams:
    """Parameters [views, N] of what ``views.prepare_draw`` returned."""
    compiled.require("cpu")
    return ViewParams(*_sample(_policy_values(policy), sizes, sample_index, seed, views))


def draw_views(
    policy: ViewPolicy, sizes: Tensor, sample_index: Tensor | None, views: int
) -> ViewParams:
    """Parameters [views, N], the seed from the default generator, in one op."""
    compiled.require("cpu")
    values = _policy_values(policy)
    return ViewParams(*torch.ops.amdim_fast.draw_views(sizes.cpu(), sample_index, values, views))


def _policy_values(policy: ViewPolicy) -> list[float]:
    low, high = policy.scale or (0.0, 0.0)
    log_low, log_high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    amounts = (policy.brightness, policy.contrast, policy.saturation)
    factor_low = [max(0.0, 1.0 - amount) for amount in amounts]
    return [
        *(float(policy.scale is not None), low, high - low),
        *(log_low, log_high - log_low, *policy.ratio),
        *(policy.max_translation, policy.translate_probability, policy.flip_probability),
        *(policy.jitter_probability, policy.gray_probability, *factor_low),
        *(1.0 + amount - start for amount, start in zip(amounts, factor_low, strict=True)),
        policy.hue,
    ]


def _sample(
    values: list[float], sizes: Tensor, sample_index: Tensor, seed: int, views: int
) -> tuple[Tensor, ...]:
    fields: tuple[Tensor, ...] = torch.ops.amdim_fast.sample_views(
        sizes.contiguous(),
        sample_index.contiguous(),
        torch.tensor(values, dtype=torch.float64, device="cpu"),
        seed,
        views,
    )
    return fields


def _draw(
    sizes: Tensor, sample_index: Tensor | None, values: list[float], views: int
) -> tuple[Tensor, ...]:
    max_translation = int(values[_MAX_TRANSLATION])
    extent, index, seed = prepare_draw(max_translation, sizes, views, None, sample_index)
    return _sample(values, extent, index, seed, views)


def _fake_draw(
    sizes: Tensor, sample_index: Tensor | None, values: list[float], views: int
) -> tuple[Tensor, ...]:
    lead = (views, sizes.shape[0])
    return tuple(
        sizes.new_empty((*lead, *trailing), dtype=dtype) for dtype, trailing in VIEW_FIELDS.values()
    )


LIBRARY.impl("draw_views", _draw, "CPU")
torch.library.register_fake("amdim_fast::draw_views", _fake_draw, lib=LIBRARY)
