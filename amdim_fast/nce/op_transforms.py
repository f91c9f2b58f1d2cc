"""The contrastive op under the transforms of torch.func.

grad, vjp and jacrev take the op's own backward. vmap makes one call after the other: each of its
members is a batch of its own, whose images are no negatives of another's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amdim_fast.nce.library import OPS
from amdim_fast.nce.op_autograd import FORWARD_MODE, gradients, remember, split
from amdim_fast.nce.op_inputs import Inputs


class _Call:
    """What a call has beside tensors; a leaf in the trees of torch.func."""

    def __init__(self, inputs: Inputs, group_name: str | None) -> None:
        self.counts = len(inputs.srcs), len(inputs.trgs), len(inputs.picks)
        self.options = (*inputs[3:], group_name)


def active() -> bool:
    """Whether a transform of torch.func is applied; not in torch.compile, which traces them."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def forward(inputs: Inputs, group_name: str | None) -> tuple[Tensor, ...]:
    """The results of ``nce_forward``."""
    tensors = (*inputs.srcs, *inputs.trgs, *inputs.picks)
    return _Transformed.apply(_Call(inputs, group_name), *tensors)[:5]


class _Transformed(torch.autograd.Function):
    """The backward of ``nce_forward``, in the form that torch.func takes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The op; which gradients will be wanted is not known yet."""
        srcs, trgs, picks, _ = split(tensors, call.counts)
        needs = [True] * (len(srcs) + len(trgs))
        *results, saved = OPS.nce_forward.default(srcs, trgs, picks, *call.options, needs)
        return (*results, *saved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Saves as ``op_autograd`` does."""
        call, *tensors = inputs
        remember(ctx, call.counts, call.options, None, None)
        ctx.mark_non_differentiable(*output[4:])
        ctx.save_for_backward(*tensors, *output[4:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of the tensors."""
        count = sum(ctx.counts[:2])
        found = gradients(ctx, grads, ctx.needs_input_grad[1 : 1 + count])
        return (None, *found, *[None] * ctx.counts[2])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Refuse."""
        raise RuntimeError(FORWARD_MODE)


class _Batch(NamedTuple):
    """As torch.library hands it to a rule of vmap."""

    batch_size: int
    randomness: str


def one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of vmap that calls an op for one member after the other."""

    def rule(info: _Batch, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        found = [
            op(*[_member(arg, dim, index) for arg, dim in zip(arguments, in_dims, strict=False)])
            for index in range(info.batch_size)
        ]
        return _stacked(found), _first_dims(found[0])

    return rule


def _member(argument: Any, dim: Any, index: int) -> Any:
    """Of a member, a batched argument, or list of some."""
    if isinstance(dim, (list, tuple)):
        return [_member(part, at, index) for part, at in zip(argument, dim, strict=True)]
    return argument if dim is None else argument.select(dim, index)


def _stacked(results: Sequence[Any]) -> Any:
    """The members' results, or lists of some, along a new first dimension."""
    if isinstance(results[0], Tensor):
        return torch.stack(list(results))
    return type(results[0])(_stacked(parts) for parts in zip(*results, strict=True))


def _first_dims(result: Any) -> Any:
    return 0 if isinstance(result, Tensor) else type(result)(map(_first_dims, result))
