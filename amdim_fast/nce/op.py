"""The ops ``amdim_fast::nce_forward``, ``nce_backward``, ``nce_objective``, ``nce_scale_``.

One call takes several pairings, so that a whole loss is one operator boundary. A pairing has
sources [S, B, D] stacked against shared targets [B, L, D], and may draw one more source set, one
location per image, from the targets of another pairing.

``nce_forward`` returns results with any upstream; ``nce_objective`` returns one scalar and, in the
same pass, its gradients for an upstream of 1, which its backward scales. In the schemas ``picks``
are locations, and ``pos`` are scores with the own image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.nce import op_autograd, op_kernels
from amdim_fast.nce.library import OPS, register, register_autograd
from amdim_fast.nce.op_inputs import Inputs
from amdim_fast.nce.wiring import NO_ORIGIN

_INPUTS = (
    "Tensor[] srcs, Tensor[] trgs, Tensor[] picks, int[] src_of, int[] pick_from, float? clip,"
    " bool same_location, int parts, float loss_weight, float mean_sq_weight, str backend,"
    " str precision, int? memory_budget"
)
FORWARD_SCHEMA = (
    f"({_INPUTS}, str? group_name, bool[] needs) -> (Tensor totals, Tensor loss, Tensor log_prob,"
    " Tensor mean_sq, Tensor pos, Tensor[] saved)"
)
BACKWARD_SCHEMA = (
    f"({_INPUTS}, str? group_name, bool[] needs, Tensor[] saved, Tensor? grad_totals,"
    " Tensor? grad_loss, Tensor? grad_log_prob, Tensor? grad_mean_sq) -> Tensor[]"
)
OBJECTIVE_SCHEMA = (
    f"({_INPUTS}, bool[] needs) -> (Tensor objective, Tensor totals, Tensor loss, Tensor mean_sq,"
    " Tensor gradients)"
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
    inputs, needs = _inputs(srcs, trgs, settings, weights, picks, pick_from)
    return Outputs(*OPS.nce_forward.default(*inputs, group_name, needs)[:5])


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
    inputs, needs = _inputs(srcs, trgs, settings, weights, picks, pick_from)
    return Objective(*OPS.nce_objective.default(*inputs, needs)[:4])


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


register("nce_forward", FORWARD_SCHEMA, op_kernels.forward, op_kernels.forward_fake)
register("nce_backward", BACKWARD_SCHEMA, op_kernels.backward, op_kernels.backward_fake)
register("nce_objective", OBJECTIVE_SCHEMA, op_kernels.objective, op_kernels.objective_fake)
register("nce_scale_", SCALE_SCHEMA, op_kernels.scale, op_kernels.scale_fake)
register_autograd("nce_forward", op_autograd.forward)
register_autograd("nce_objective", op_autograd.objective)
