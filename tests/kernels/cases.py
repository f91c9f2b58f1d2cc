"""Plans, planted memory and comparisons with float64 that the tests of the kernels share."""

from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast import nce_log_prob, nce_loss
from amdim_fast.nce import layout, reference, tiles, triton_fused
from amdim_fast.nce.functional import nce_objective
from amdim_fast.nce.plan import PairingPlan
from tests.nce.cases import margin, relative_error, tile_set

WEIGHT, FACTOR = 0.03, 0.37
KINDS = ("log_prob", "loss", "objective")


def use(monkeypatch, way, programs=9):
    """Small tiles, and products by the fused kernels or by torch."""
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(way))
    monkeypatch.setattr(triton_fused, "PROGRAMS_PER_PROCESSOR", programs)
    monkeypatch.setattr(layout, "_layouts", {})


def plan_all(monkeypatch, mode, *, rows=10**6, images=10**6):
    """Every pairing has this mode, chunks of at most ``rows`` and blocks of at most ``images``.

    Scores that are kept are one chunk; nothing is stored where fused kernels recompute. Blocks of
    kept scores must start at multiples of 16 columns.
    """

    def plans(shapes, way, **_):
        fused, limit = way.fused and mode == "recompute", 10**6 if mode == "keep" else rows
        return tuple(
            PairingPlan(
                mode,
                0 if fused else min(limit, shape.rows),
                min(images, shape.targets),
                0,
                int(way.dtype == torch.bfloat16 and rows < shape.rows),
                0,
                "planted",
            )
            for shape in shapes
        )

    monkeypatch.setattr(layout, "plan_pairings", plans)
    monkeypatch.setattr(layout, "_layouts", {})


def fill_with_nan(monkeypatch):
    """New tensors hold NaN, so an entry that nothing writes shows."""

    def filled(function):
        def wrapped(*arguments, **options):
            tensor = function(*arguments, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return wrapped

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))


class Upstreams(NamedTuple):
    """Gradients of log_prob, and two of one number a set."""

    log_prob: Tensor
    first: Tensor
    second: Tensor


def upstreams_like(src, trg):
    shapes = (*src.shape[:-1], trg.shape[1]), src.shape[:-2], src.shape[:-2]
    return Upstreams(*(torch.randn(shape).to(src.device) for shape in shapes))


def ours(kind, src, trg, **options):
    """What a public function of the kernels returns."""
    if kind == "loss":
        return nce_loss(src, trg, backend="triton", **options)
    if kind == "objective":
        return nce_objective(src, trg, mean_sq_weight=WEIGHT, backend="triton", **options)
    return nce_log_prob(src, trg, backend="triton", **options)


def expected(kind, src, trg, **options):
    """The same from the reference, in the type of the inputs."""
    output = reference.nce_log_prob(src, trg, **options)
    loss = -output.log_prob.mean(dim=(-2, -1))
    if kind == "loss":
        return loss, output.mean_sq
    if kind == "objective":
        return (loss + WEIGHT * output.mean_sq).sum(), loss, output.mean_sq
    return output


def with_gradients(kind, outputs, src, trg, upstreams):
    """Outputs, and gradients of sources and targets."""
    if kind == "objective":
        scalar = FACTOR * outputs[0]
    elif kind == "loss":
        scalar = (outputs[0] * upstreams.first + outputs[1] * upstreams.second).sum()
    else:
        scalar = (outputs[0] * upstreams.log_prob).sum() + (outputs[2] * upstreams.second).sum()
    return [tensor.detach() for tensor in (*outputs, *torch.autograd.grad(scalar, (src, trg)))]


def compare(kind, src, trg, **options):
    """The kernels are no further from float64 than eager in this type, plus the margin."""
    upstreams = upstreams_like(src, trg)
    wide = [tensor.detach().double().requires_grad_() for tensor in (src, trg)]
    truth = with_gradients(kind, expected(kind, *wide, **options), *wide, upstreams)
    eager = with_gradients(kind, expected(kind, src, trg, **options), src, trg, upstreams)
    values = with_gradients(kind, ours(kind, src, trg, **options), src, trg, upstreams)
    of_outputs, of_grads = margin(options.get("clip", 20.0), src.dtype)
    margins = [of_outputs] * (len(values) - 2) + [of_grads] * 2
    types = [torch.float32] * (len(values) - 2) + [src.dtype] * 2
    assert [value.dtype for value in values] == types
    for value, baseline, right, slack in zip(values, eager, truth, margins, strict=True):
        assert relative_error(value, right) <= relative_error(baseline, right) + slack
