"""The derivatives of the contrastive ops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from amdim_fast.nce.library import OPS, below_autograd
from amdim_fast.nce.op_inputs import Inputs, split_flat

SECOND_DERIVATIVE = (
    "nce_log_prob: a second derivative is not supported; on small inputs"
    " amdim_fast.nce.reference.nce_log_prob has one"
)


def forward(keyset: Any, *arguments: Any) -> tuple[Any, ...]:
    """``nce_forward`` with its backward, where one is wanted."""
    if not torch.is_grad_enabled() or not any(arguments[-1]):
        return below_autograd(OPS.nce_forward.default, keyset, arguments)
    results = _Forward.apply(keyset, arguments, *arguments[0], *arguments[1])
    return (*results[:5], list(results[5:]))


def objective(keyset: Any, *arguments: Any) -> tuple[Tensor, ...]:
    """``nce_objective`` with its backward, where one is wanted."""
    if not torch.is_grad_enabled() or not any(arguments[-1]):
        return below_autograd(OPS.nce_objective.default, keyset, arguments)
    return _Objective.apply(keyset, arguments, *arguments[0], *arguments[1])


class _Forward(torch.autograd.Function):
    """The backward of ``nce_forward``."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, arguments: tuple[Any, ...], *tensors: Tensor) -> Any:
        """The op below autograd."""
        *results, score, saved = below_autograd(OPS.nce_forward.default, keyset, arguments)
        ctx.arguments = [None, None, None, *arguments[3:]]
        ctx.counts = len(arguments[0]), len(arguments[1]), len(arguments[2])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(score, *saved)
        ctx.save_for_backward(*tensors, *arguments[2], score, *saved)
        return (*results, score, *saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of the tensors."""
        totals, loss, log_prob, mean_sq, *_ = grads
        srcs, trgs, picks, saved = _split(ctx.saved_tensors, ctx.counts)
        needs = list(ctx.needs_input_grad[2:])
        inputs = [srcs, trgs, picks, *ctx.arguments[3:-1]]
        with torch.no_grad():
            found = iter(
                OPS.nce_backward.default(*inputs, needs, saved, totals, loss, log_prob, mean_sq)
            )
        gradients = [next(found) if need else None for need in needs]
        return (None, None, *_once(gradients, [*srcs, *trgs]))


class _Objective(torch.autograd.Function):
    """The backward of ``nce_objective``, which has its gradients already.

    They are scaled where they are, once. Another backward of the same graph makes them anew. The
    op's caller gets none, since the backward would change them.
    """

    @staticmethod
    def forward(ctx: Any, keyset: Any, arguments: tuple[Any, ...], *tensors: Tensor) -> Any:
        """The op below autograd."""
        *results, gradients = below_autograd(OPS.nce_objective.default, keyset, arguments)
        nothing = gradients.new_empty(0)
        ctx.arguments = [None, None, None, *arguments[3:]]
        ctx.counts = len(arguments[0]), len(arguments[1]), len(arguments[2])
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[1:], nothing)
        ctx.save_for_backward(*tensors, *arguments[2])
        return (*results, nothing)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *others: None) -> Any:
        """Gradients of the tensors."""
        srcs, trgs, picks, _ = _split(ctx.saved_tensors, ctx.counts)
        needs = ctx.arguments[-1]
        if upstream is None:
            return (None, None, *[None] * len(needs))
        inputs = Inputs(srcs, trgs, picks, *ctx.arguments[3:-1])
        flat, ctx.gradients = ctx.gradients, None
        with torch.no_grad():
            if flat is None:
                flat = OPS.nce_objective.default(*inputs, needs)[-1]
            if flat.dtype == srcs[0].dtype:
                OPS.nce_scale_.default(flat, upstream, inputs.backend)
            else:
                flat = (flat * upstream).to(srcs[0].dtype)
        gradients = split_flat(inputs, needs, flat)
        return (None, None, *_once([*gradients.srcs, *gradients.trgs], [*srcs, *trgs]))


class _Once(torch.autograd.Function):
    """Gradients of ``count`` tensors, which have no gradients themselves."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The first ``count`` tensors."""
        return tuple([tensor.view_as(tensor) for tensor in tensors[:count]])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuse."""
        raise RuntimeError(SECOND_DERIVATIVE)


def _once(gradients: list[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients; where a graph of them is made, differentiating it raises."""
    if not torch.is_grad_enabled():
        return gradients
    wanted = [grad for grad in gradients if grad is not None]
    found = iter(_Once.apply(len(wanted), *wanted, *inputs))
    return [None if grad is None else next(found) for grad in gradients]


def _split(
    tensors: Sequence[Tensor], counts: tuple[int, int, int]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """srcs, trgs, picks and the rest."""
    first, second, third = accumulate(counts)
    parts = tensors[:first], tensors[first:second], tensors[second:third], tensors[third:]
    srcs, trgs, picks, rest = (list(part) for part in parts)
    return srcs, trgs, picks, rest
