"""Objectives, truths and inputs that the tests of the objective share."""

from typing import NamedTuple

import torch

from amdim_fast import LossMultiNCE, nce_objective
from amdim_fast.nce import reference

WEIGHT = 0.3
BACKENDS = ("torch", "triton")


def features(images, locations, width, *, sets=None, dtype=torch.float64, scale=2.0):
    shape = (images, width) if sets is None else (sets, images, width)
    src = (scale * torch.randn(shape, dtype=torch.float64)).to(dtype)
    trg = torch.randn(images, locations, width, dtype=torch.float64).to(dtype)
    return src.requires_grad_(), trg.requires_grad_()


def maps(images=5, width=8, sides=(1, 5, 7), dtype=torch.float64, layout=torch.channels_last):
    return [
        torch.randn(images, width, side, side, dtype=dtype)
        .contiguous(memory_format=layout)
        .requires_grad_()
        for side in sides * 2
    ]


def places(images=5, count=25):
    return tuple(torch.randint(0, count, (images,)) for _ in range(2))


def wide(tensors):
    """The same numbers in float64, as leaves."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


class Judged(NamedTuple):
    """A scalar, its parts, and its gradients for an upstream."""

    objective: torch.Tensor
    parts: list
    grads: tuple


def judged(objective, parts, inputs, upstream=1.0):
    grads = torch.autograd.grad(objective, inputs, torch.full_like(objective, upstream))
    return Judged(objective.detach(), [part.detach() for part in parts], grads)


def objective_of(src, trg, **options):
    return nce_objective(src, trg, mean_sq_weight=WEIGHT, **options).objective


def ours(src, trg, upstream=1.0, **options):
    """``nce_objective`` and its gradients."""
    objective, *parts = nce_objective(src, trg, mean_sq_weight=WEIGHT, **options)
    return judged(objective, parts, (src, trg), upstream)


def truth(src, trg, upstream=1.0, **options):
    """The same of the reference, in the dtype of the inputs."""
    loss, mean_sq = reference.nce_loss(src, trg, **options)
    return judged((loss + WEIGHT * mean_sq).sum(), (loss, mean_sq), (src, trg), upstream)


def our_loss(inputs, locations, upstream=1.0, clip=10.0, **options):
    """``LossMultiNCE.objective`` and its gradients."""
    loss = LossMultiNCE(tclip=clip, reg_weight=WEIGHT, **options)
    objective, *parts = loss.objective(*inputs, locations=locations)
    return judged(objective, parts, inputs, upstream)


def true_loss(inputs, locations, upstream=1.0, clip=10.0):
    """The same of the reference."""
    views = tuple(inputs[:3]), tuple(inputs[3:])
    parts = reference.multiscale_nce(*views, locations, clip=clip, reg_weight=WEIGHT)
    return judged(sum(parts), parts, inputs, upstream)


def tensors_of(found):
    return [found.objective, *found.parts, *found.grads]


def assert_equal(found, expected, **tolerances):
    """Value, parts and gradients."""
    for value, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        torch.testing.assert_close(value, other, **tolerances)


def relative_error(value, expected):
    value, expected = value.detach().double(), expected.detach()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-30))


def assert_no_worse(found, eager, expected, margin):
    """No further from float64 than eager in the same dtype, plus some float32 roundings."""
    for value, baseline, other in zip(*map(tensors_of, (found, eager, expected)), strict=True):
        error, limit = relative_error(value, other), relative_error(baseline, other) + margin
        assert error <= limit
