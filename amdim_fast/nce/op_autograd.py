"""The derivatives of the contrastive ops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from amdim_fast.nce import op_kernels
from amdim_fast.nce.kept import keep_all
from amdim_fast.nce.library import OPS, below_autograd, is_plain
from amdim_fast.nce.op_inputs import Inputs, read, split_flat

BACKEND = Inputs._fields.index("backend") - 3  # among ctx.options

SECOND_DERIVATIVE = (
    "nce_log_prob: a second derivative is not supported; on small inputs"
    " amdim_fast.nce.reference.nce_log_prob has one"
)
FORWARD_MODE = (
    "nce_log_prob: derivatives in forward mode (jvp, jacfwd, dual tensors) are not supported; on"
    " small inputs amdim_fast.nce.reference.nce_log_prob has them"
)


def forward(keyset: Any, *arguments: Any) -> tuple[Any, ...]:
    """``nce_forward`` with its backward, where one is wanted; it then keeps ``saved`` to itself."""
    inputs, (group_name, needs, keep, numbers) = read(arguments, 4)
    tensors = (*inputs.srcs, *inputs.trgs)
    if not _wanted(tensors):
        return below_autograd(OPS.nce_forward.default, keyset, arguments)
    if keep is None and any([type(tensor.numel()) is not int for tensor in tensors]):
        keep = keep_all(inputs, group_name, needs)
    call = (*inputs, group_name, needs, keep, numbers)
    return (*_Forward.apply(keyset, call, *tensors), [])


def objective(keyset: Any, *arguments: Any) -> tuple[Tensor, ...]:
    """``nce_objective`` with its backward, where one is wanted."""
    inputs, (needs, numbers) = read(arguments, 2)
    tensors = (*inputs.srcs, *inputs.trgs)
    if not _wanted(tensors):
        return below_autograd(OPS.nce_objective.default, keyset, arguments)
    return _Objective.apply(keyset, (*inputs, needs, numbers), *tensors)


def objective_directly(arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """``nce_objective`` without the dispatcher."""
    tensors = (*arguments[0], *arguments[1])
    if not _wanted(tensors):
        return op_kernels.objective(*arguments)
    found: tuple[Tensor, ...] = _Objective.apply(None, arguments, *tensors)
    return found


def _wanted(tensors: Sequence[Tensor]) -> bool:
    """Whether a graph is recorded; raises where derivatives in forward mode are wanted."""
    if forward_ad._current_level >= 0:
        refuse_tangents(tensors)
    return torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors])


def refuse_tangents(tensors: Sequence[Tensor]) -> None:
    """Raise if one of the tensors is dual."""
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(FORWARD_MODE)


class _Forward(torch.autograd.Function):
    """The backward of ``nce_forward``."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, arguments: tuple[Any, ...], *tensors: Tensor) -> Any:
        """The op below autograd."""
        *results, score, saved = below_autograd(OPS.nce_forward.default, keyset, arguments)
        counts = len(arguments[0]), len(arguments[1]), len(arguments[2])
        remember(ctx, counts, arguments[3:-3], *arguments[-2:])
        ctx.mark_non_differentiable(score)
        ctx.save_for_backward(*tensors, *arguments[2], score, *saved)
        return (*results, score)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of the tensors."""
        return (None, None, *gradients(ctx, grads, ctx.needs_input_grad[2:]))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Refuse."""
        raise RuntimeError(FORWARD_MODE)


def remember(
    ctx: Any,
    counts: tuple[int, int, int],
    options: Sequence[Any],
    keep: int | None,
    numbers: Tensor | None,
) -> None:
    """What ``gradients`` needs beside tensors: options are src_of to group_name."""
    ctx.counts, ctx.options, ctx.keep, ctx.numbers = counts, options, keep, numbers
    ctx.set_materialize_grads(False)


def gradients(
    ctx: Any, grads: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Of the needed ones of srcs and trgs, which were saved with picks, score and ``saved``."""
    totals, loss, log_prob, mean_sq, *_ = grads
    srcs, trgs, picks, saved = split(ctx.saved_tensors, ctx.counts)
    with torch.no_grad():
        found = iter(
            OPS.nce_backward.default(
                *(srcs, trgs, picks, *ctx.options),
                list(needs),
                *(saved, totals, loss, log_prob, mean_sq, ctx.keep, ctx.numbers),
            )
        )
    return _once([next(found) if need else None for need in needs], [*srcs, *trgs])


class _Objective(torch.autograd.Function):
    """The backward of ``nce_objective``, which has its gradients already.

    They are scaled where they are, once. Another backward of the same graph makes them anew. The
    op's caller gets none, since the backward would change them.
    """

    @staticmethod
    def forward(ctx: Any, keyset: Any, arguments: tuple[Any, ...], *tensors: Tensor) -> Any:
        """The op below autograd."""
        ctx.parts = None
        if keyset is None:
            inputs, (needs, _) = read(arguments, 2)
            (*results, gradients), ctx.parts = op_kernels.objective_with_gradients(inputs, needs)
        else:
            *results, gradients = below_autograd(OPS.nce_objective.default, keyset, arguments)
        nothing = gradients.new_empty(0)
        ctx.options, ctx.needs, ctx.numbers = arguments[3:-2], *arguments[-2:]
        ctx.counts = len(arguments[0]), len(arguments[1]), len(arguments[2])
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[1:], nothing)
        ctx.save_for_backward(*tensors, *arguments[2])
        return (*results, nothing)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *others: None) -> Any:
        """Gradients of the tensors."""
        needs = ctx.needs
        if upstream is None:
            return (None, None, *[None] * len(needs))
        flat, ctx.gradients = ctx.gradients, None
        parts, ctx.parts = ctx.parts, None
        tensors = ctx.saved_tensors  # raises where one has changed since
        is_direct = parts is not None and flat is not None and flat.dtype == tensors[0].dtype
        if is_direct and not torch.is_grad_enabled() and is_plain((upstream,)):
            op_kernels.scale(flat, upstream, ctx.options[BACKEND])
            return (None, None, *parts.srcs, *parts.trgs)
        srcs, trgs, picks, _ = split(tensors, ctx.counts)
        inputs = Inputs(srcs, trgs, picks, *ctx.options)
        with torch.no_grad():
            if flat is None:
                flat = OPS.nce_objective.default(*inputs, needs, ctx.numbers)[-1]
            if flat.dtype == srcs[0].dtype:
                OPS.nce_scale_.default(flat, upstream, inputs.backend)
            else:
                flat = (flat * upstream).to(srcs[0].dtype)
        found = split_flat(inputs, needs, flat)
        return (None, None, *_once([*found.srcs, *found.trgs], [*srcs, *trgs]))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Refuse."""
        raise RuntimeError(FORWARD_MODE)


class _Once(torch.autograd.Function):
    """Gradients of ``count`` tensors, which have no gradients themselves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The first ``count`` tensors."""
        return tuple([tensor.view_as(tensor) for tensor in tensors[:count]])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuse."""
        raise RuntimeError(SECOND_DERIVATIVE)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Refuse."""
        raise RuntimeError(SECOND_DERIVATIVE)


def _once(gradients: list[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients; where a graph of them is made, differentiating it raises."""
    if not torch.is_grad_enabled():
        return gradients
    wanted = [grad for grad in gradients if grad is not None]
    found = iter(_Once.apply(len(wanted), *wanted, *inputs))
    return [None if grad is None else next(found) for grad in gradients]


def split(
    tensors: Sequence[Tensor], counts: tuple[int, int, int]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """srcs, trgs, picks and the rest."""
    first, second, third = accumulate(counts)
    parts = tensors[:first], tensors[first:second], tensors[second:third], tensors[third:]
    srcs, trgs, picks, rest = (list(part) for part in parts)
    return srcs, trgs, picks, rest
