"""The ops ``amdim_fast::residual_forward`` and ``residual_backward``: a row of residual layers.

One operator boundary and one node of autograd's graph for all layers of a block. Weights may have
another dtype than the map: they are rounded to the map's. Their gradients are not, but where a
library convolves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amdim_fast.model.residual import row
from amdim_fast.model.residual.geometry import Geometry, new_map
from amdim_fast.model.residual.row import Kept, Needs, Weights, split
from amdim_fast.nce.library import OPS, below_autograd, prepared, register, register_autograd

FORWARD_SCHEMA = (
    "(Tensor x, Tensor[] conv1, Tensor[] conv2, Tensor[] shortcut, int stride, bool keep_hidden,"
    " str backend) -> (Tensor out, Tensor[] inputs, Tensor[] hidden, Tensor[] rounded)"
)
BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor x, Tensor[] conv1, Tensor[] conv2, Tensor[] shortcut, Tensor[] inputs,"
    " Tensor[] hidden, Tensor[] rounded, int stride, str backend, bool[] needs) -> Tensor[]"
)
SECOND_DERIVATIVE = (
    "residual layers: a second derivative is not supported; backend='torch' of the encoder has one"
)


def residual_layers(
    x: Tensor,
    conv1: Sequence[Tensor],
    conv2: Sequence[Tensor],
    shortcut: Sequence[Tensor] = (),
    *,
    stride: int,
    keep_hidden: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Layers x -> conv2(relu(conv1(x))) + shortcut(x), one after the other, without padding.

    The shortcut is x or, in a first layer that is strided, wider than 1x1 or adds channels, the
    average pool of conv1's kernel and stride with zero channels appended. The first layer's may be
    a convolution instead, of conv1's geometry, where that is 1x1 or covers the map.

    Args:
        x: [B, C, H, W], in channels_last.
        conv1: weights [C', C, kernel, kernel], then [C', C', 1, 1]; C' >= C.
        conv2: weights [C', C', 1, 1].
        shortcut: weight [C', C, kernel, kernel] and bias [C'] of the first layer's, or nothing.
        stride: of the first layer; the others have 1.
        keep_hidden: whether the backward finds the results of the ReLUs; if not, it makes those of
            layers that keep map and channels again, one product each.
        backend: of the pooled shortcut: "auto", "torch" or "triton".

    Returns:
        [B, C', H', W'], channels_last, dtype of x.

    Differentiable once. Deterministic if the convolutions of torch are.
    """
    return OPS.residual_forward.default(
        x, list(conv1), list(conv2), list(shortcut), stride, keep_hidden, backend
    )[0]


def forward(
    x: Tensor,
    conv1: list[Tensor],
    conv2: list[Tensor],
    shortcut: list[Tensor],
    stride: int,
    keep_hidden: bool,
    backend: str,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """``residual_forward``."""
    geometry = Geometry.of(x, conv1[0], stride, shortcut)
    with prepared(x):
        out, kept = row.forward(
            x, Weights(conv1, conv2, shortcut), geometry, keep_hidden=keep_hidden, backend=backend
        )
    return out, *kept


def forward_fake(
    x: Tensor,
    conv1: list[Tensor],
    conv2: list[Tensor],
    shortcut: list[Tensor],
    stride: int,
    keep_hidden: bool,
    backend: str,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Tensors of the shapes that ``forward`` returns."""
    geometry = Geometry.of(x, conv1[0], stride, shortcut)
    batch, channels, height, width = geometry.out_shape
    maps = [new_map(x, geometry.out_shape) for _ in conv1]
    hidden = len(conv1) if keep_hidden else int(not geometry.is_plain)
    weights = [*conv1, *conv2, *shortcut] if conv1[0].dtype != x.dtype else []
    return (
        maps[0],
        maps[1:],
        [x.new_empty(batch * height * width, channels) for _ in range(hidden)],
        [_like(weight, x.dtype) for weight in weights],
    )


def backward(
    grad: Tensor,
    x: Tensor,
    conv1: list[Tensor],
    conv2: list[Tensor],
    shortcut: list[Tensor],
    inputs: list[Tensor],
    hidden: list[Tensor],
    rounded: list[Tensor],
    stride: int,
    backend: str,
    needs: list[bool],
) -> list[Tensor]:
    """``residual_backward``: gradients of x, conv1 and conv2, of those that ``needs`` names."""
    weights = Weights(conv1, conv2, shortcut)
    with prepared(x):
        found = row.backward(
            grad,
            x,
            weights,
            Kept(inputs, hidden, rounded),
            Geometry.of(x, conv1[0], stride, shortcut),
            Needs(needs[0], *split(needs[1:], weights.lengths)),
            backend,
        )
    flat = [value for part in found for value in part]
    return [value for value, need in zip(flat, needs, strict=True) if need and value is not None]


def backward_fake(
    grad: Tensor,
    x: Tensor,
    conv1: list[Tensor],
    conv2: list[Tensor],
    shortcut: list[Tensor],
    inputs: list[Tensor],
    hidden: list[Tensor],
    rounded: list[Tensor],
    stride: int,
    backend: str,
    needs: list[bool],
) -> list[Tensor]:
    """Tensors of the shapes that ``backward`` returns."""
    tensors = zip([x, *conv1, *conv2, *shortcut], needs, strict=True)
    return [_like(tensor, tensor.dtype) for tensor, need in tensors if need]


def _like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty tensor of this shape, a map or a weight in channels_last."""
    if tensor.ndim == 1:
        return torch.empty_like(tensor, dtype=dtype)
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.channels_last)


class _Residual(torch.autograd.Function):
    """The backward of ``residual_forward``."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, arguments: tuple[Any, ...], *tensors: Tensor) -> Any:
        """The op below autograd."""
        out, *kept = below_autograd(OPS.residual_forward.default, keyset, arguments)
        ctx.stride, ctx.backend = arguments[4], arguments[6]
        ctx.lengths = [*map(len, arguments[1:4]), *map(len, kept)]
        saved = [value for values in kept for value in values]
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *saved)
        return (out, *saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: None) -> Any:
        """Gradients of x and the weights."""
        needs = list(ctx.needs_input_grad[2:])
        if grad is None:
            return (None, None, *[None] * len(needs))
        if torch.is_grad_enabled():
            raise RuntimeError(SECOND_DERIVATIVE)
        x, *rest = ctx.saved_tensors
        lists = split(rest, ctx.lengths)
        found = iter(OPS.residual_backward.default(grad, x, *lists, ctx.stride, ctx.backend, needs))
        return (None, None, *(next(found) if need else None for need in needs))


def _autograd(keyset: Any, *arguments: Any) -> Any:
    """``residual_forward`` with its backward, where one is wanted."""
    x, *lists = arguments[:4]
    tensors = [x, *(value for part in lists for value in part)]
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return below_autograd(OPS.residual_forward.default, keyset, arguments)
    out, *saved = _Residual.apply(keyset, arguments, *tensors)
    layers = len(arguments[1])
    rounded = len(tensors) - 1 if arguments[1][0].dtype != x.dtype else 0
    return out, *split(saved, [layers - 1, len(saved) - layers + 1 - rounded, rounded])


register("residual_forward", FORWARD_SCHEMA, forward, forward_fake)
register("residual_backward", BACKWARD_SCHEMA, backward, backward_fake)
register_autograd("residual_forward", _autograd)
