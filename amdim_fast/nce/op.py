"""The ops ``amdim_fast::nce_forward``, ``nce_backward``, ``nce_objective``, ``nce_scale_``.

One call takes several pairings, so that a whole loss is one operator boundary. A pairing has
sources [S, B, D] stacked against shared targets [B, L, D], and may draw one more source set, one
location per image, from the targets of another pairing.

``nce_forward`` returns results with any upstream; ``nce_objective`` returns one scalar and, in the
same pass, its gradients for an upstream of 1, which its backward scales. In the schemas ``picks``
are locations, and ``pos`` are scores with the own image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.nce import flops, op_autograd, op_fakes, op_kernels, op_transforms
from amdim_fast.nce.changing import is_constant
from amdim_fast.nce.library import OPS, is_plain, register, register_autograd, register_vmap
from amdim_fast.nce.op_inputs import Inputs
from amdim_fast.nce.wiring import NO_ORIGIN

_INPUTS = (
    "Tensor[] srcs, Tensor[] trgs, Tensor[] picks, int[] src_of, int[] pick_from, float? clip,"
    " bool same_location, int parts, float loss_weight, float mean_sq_weight, str backend,"
    " str precision, int? memory_budget"
)
FORWARD_SCHEMA = (
    f"({_INPUTS}, str? group_name, bool[] needs, SymInt? keep=None, Tensor? numbers=None)"
    " -> (Tensor totals, Tensor loss, Tensor log_prob, Tensor mean_sq, Tensor pos, Tensor[] saved)"
)
BACKWARD_SCHEMA = (
    f"({_INPUTS}, str? group_name, bool[] needs, Tensor[] saved, Tensor? grad_totals,"
    " Tensor? grad_loss, Tensor? grad_log_prob, Tensor? grad_mean_sq, SymInt? keep=None,"
    " Tensor? numbers=None) -> Tensor[]"
)
OBJECTIVE_SCHEMA = (
    f"({_INPUTS}, bool[] needs, Tensor? numbers=None) -> (Tensor objective, Tensor totals,"
    " Tensor loss, Tensor mean_sq, Tensor gradients)"
)
SCALE_SCHEMA = "(Tensor(a!) gradients, Tensor upstream, str backend) -> ()"


class Settings(NamedTuple):
    """Options of a call; attributes as in ``Inputs``."""

    clip: float | None
    same_location: bool
    backend: str
    precision: str
    memory_budget: int | None


class Outputs(NamedTuple):
    """Differentiable results of a call, and the own scores.

    Flat tensors, pairing after pairing, S with the drawn set.
    """

    totals: Tensor  # [parts + 1]: weighted losses of each part; weighted mean_sq of all sets
    loss: Tensor  # [sets]: -mean(log_prob)
    log_prob: Tensor  # [S, B, L] of each pairing
    mean_sq: Tensor  # [sets]
    score: Tensor  # [S, B, L] of each pairing, detached


class Objective(NamedTuple):
    """The sum of totals, differentiable, and its parts, detached."""

    objective: Tensor  # scalar
    totals: Tensor  # as in Outputs
    loss: Tensor
    mean_sq: Tensor


class Weights(NamedTuple):
    """How losses make up totals; attributes as in ``Inputs``."""

    parts: int
    loss: float
    mean_sq: float


def nce_forward(
    srcs: Sequence[Tensor],
    trgs: Sequence[Tensor],
    settings: Settings,
    weights: Weights,
    *,
    picks: Sequence[Tensor] = (),
    pick_from: Sequence[int] | None = None,
    group_name: str | None = None,
) -> Outputs:
    """Call the op on checked inputs.

    Args:
        srcs: [S, B, D] of each pairing; a tensor may occur in several.
        trgs: [B, L, D] of each pairing.
        settings: options.
        weights: of losses in the totals.
        picks: as in ``Inputs``.
        pick_from: as in ``Inputs``; None where no sources are drawn.
        group_name: process group whose other ranks' images are negatives too, or None.
    """
    settings, weights, numbers = _numbers(settings, weights)
    inputs, needs = _inputs(srcs, trgs, settings, weights, picks, pick_from)
    if op_transforms.active():
        return Outputs(*op_transforms.forward(inputs, group_name))
    return Outputs(*OPS.nce_forward.default(*inputs, group_name, needs, None, numbers)[:5])


def nce_objective(
    srcs: Sequence[Tensor],
    trgs: Sequence[Tensor],
    settings: Settings,
    weights: Weights,
    *,
    picks: Sequence[Tensor] = (),
    pick_from: Sequence[int] | None = None,
) -> Objective:
    """The sum of totals, with its gradients from the same pass; arguments as ``nce_forward``."""
    if op_transforms.active():
        found = nce_forward(srcs, trgs, settings, weights, picks=picks, pick_from=pick_from)
        parts = found.totals, found.loss, found.mean_sq
        return Objective(found.totals.sum(), *(part.detach() for part in parts))
    settings, weights, numbers = _numbers(settings, weights)
    inputs, needs = _inputs(srcs, trgs, settings, weights, picks, pick_from)
    if numbers is None and is_plain((*inputs.srcs, *inputs.trgs)):
        return Objective(*op_autograd.objective_directly((*inputs, needs, None))[:4])
    return Objective(*OPS.nce_objective.default(*inputs, needs, numbers)[:4])


def _numbers(settings: Settings, weights: Weights) -> tuple[Settings, Weights, Tensor | None]:
    """Numbers that change from call to call of a graph, as the tensor that the ops take.

    As numbers they would be constants of a graph, and each value would take one of its own.
    """
    if not torch.compiler.is_compiling():
        return settings, weights, None
    clip, mean_sq = settings.clip, weights.mean_sq
    if not ((clip is None or is_constant(clip)) and is_constant(mean_sq)):
        one = torch.ones((), dtype=torch.float64)
        numbers = torch.stack([one * (math.inf if clip is None else clip), one * mean_sq])
        settings, weights = settings._replace(clip=None), weights._replace(mean_sq=0.0)
        return settings, weights, numbers
    return settings, weights, None


def _inputs(
    srcs: Sequence[Tensor],
    trgs: Sequence[Tensor],
    settings: Settings,
    weights: Weights,
    picks: Sequence[Tensor],
    pick_from: Sequence[int] | None,
) -> tuple[Inputs, list[bool]]:
    """Inputs of an op, and which of its sources and targets want gradients."""
    unique: list[Tensor] = []
    src_of = []
    for src in srcs:
        place = next((i for i, known in enumerate(unique) if known is src), len(unique))
        unique += [src] if place == len(unique) else []
        src_of.append(place)
    inputs = Inputs(
        unique,
        list(trgs),
        list(picks),
        src_of,
        [NO_ORIGIN] * len(trgs) if pick_from is None else list(pick_from),
        settings.clip,
        settings.same_location,
        weights.parts,
        weights.loss,
        weights.mean_sq,
        settings.backend,
        settings.precision,
        settings.memory_budget,
    )
    enabled = torch.is_grad_enabled()
    return inputs, [enabled and tensor.requires_grad for tensor in (*unique, *trgs)]


register("nce_forward", FORWARD_SCHEMA, op_kernels.forward, op_fakes.forward)
register("nce_backward", BACKWARD_SCHEMA, op_kernels.backward, op_fakes.backward)
register("nce_objective", OBJECTIVE_SCHEMA, op_kernels.objective, op_fakes.objective)
register("nce_scale_", SCALE_SCHEMA, op_kernels.scale, op_fakes.scale)
register_autograd("nce_forward", op_autograd.forward)
register_autograd("nce_objective", op_autograd.objective)
register_vmap("nce_forward", op_transforms.one_by_one(OPS.nce_forward.default))
register_vmap("nce_backward", op_transforms.one_by_one(OPS.nce_backward.default))
flops.register()
