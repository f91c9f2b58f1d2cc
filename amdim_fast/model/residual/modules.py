"""Residual layers and blocks; a row of them is one op where it can be.

Source: arXiv:1906.00910, section 4.1, and the public code's ``ConvResNxN`` and ``ConvResBlock``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amdim_fast.model.residual.op import residual_layers

BACKENDS = ("auto", "torch", "triton")
# Results of ReLUs of a row that are kept for the backward; more are made again.
KEEP_BYTES = 2**30


class OptionalBatchNorm(nn.Module):
    """BatchNorm2d whose parameters are in the state dict even if it is switched off.

    Its parameters then do not require gradients, so DistributedDataParallel does not wait for them.
    """

    def __init__(self, channels: int, use_bn: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels).requires_grad_(use_bn)
        self.use_bn = use_bn

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return self.bn(x) if self.use_bn else x


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(x)`` without padding; where the kernel covers the map, as one matrix product.

    oneDNN's weight gradient of such a convolution is many times slower.
    """
    if tuple(x.shape[2:]) != conv.kernel_size:
        return conv(x)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, conv.bias)[:, :, None, None]


class ResidualConv(nn.Module):
    """x -> conv2(relu(bn(conv1(x)))) + shortcut(x), without padding; conv2 is 1x1, starting at 0.

    The shortcut is an average pool of conv1's kernel and stride, with zero channels appended when
    n_out > n_in; when n_out < n_in it is ``conv3``, of conv1's geometry, with bias.

    Attributes:
        backend: "auto", "torch" or "triton", as in ``Encoder``.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, use_bn: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, kernel, stride, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 1, bias=False)
        self.conv3 = nn.Conv2d(n_in, n_out, kernel, stride) if n_out < n_in else None
        self.bn1 = OptionalBatchNorm(n_out, use_bn)
        self.kernel, self.stride = kernel, stride
        self.new_channels = n_out - n_in
        self.backend = "auto"
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, H, W] -> [B, n_out, H', W']."""
        if can_fuse([self], x):
            return fused([self], x)
        hidden = F.relu(self.bn1(convolve(self.conv1, x)), inplace=True)
        return convolve(self.conv2, hidden) + self._shortcut(x)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.conv3 is not None:
            return convolve(self.conv3, x)
        if self.kernel > 1:
            x = F.avg_pool2d(x, self.kernel, self.stride)
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x


class ResidualBlock(nn.Module):
    """A ResidualConv of the given kernel and stride, then depth - 1 of them that are 1x1."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int, stride: int, depth: int, use_bn: bool
    ) -> None:
        super().__init__()
        self.layer_list = nn.Sequential(
            ResidualConv(n_in, n_out, kernel, stride, use_bn),
            *(ResidualConv(n_out, n_out, 1, 1, use_bn) for _ in range(depth - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, H, W] -> [B, n_out, H', W']."""
        layers = [layer for layer in self.layer_list if isinstance(layer, ResidualConv)]
        is_row = len(layers) == len(self.layer_list) and not has_hooks(self.layer_list)
        is_row = is_row and can_fuse(layers, x)
        return fused(layers, x) if is_row else self.layer_list(x)


def can_fuse(layers: Sequence[ResidualConv], x: Tensor) -> bool:
    """Whether these layers run as one op on x; not where it would pass over something of them."""
    if not is_fused(layers[0].backend, x):
        return False
    return all(
        not layer.bn1.use_bn
        and are_plain(layer.conv1, layer.conv2)
        and not has_hooks(layer, layer.conv1, layer.conv2, layer.bn1)
        and (layer.conv3 is None or _projects(layer, x))
        for layer in layers
    )


def _projects(layer: ResidualConv, x: Tensor) -> bool:
    """Whether the op has the layer's convolution in its shortcut."""
    conv = layer.conv3
    is_product = layer.kernel == layer.stride == 1 or tuple(x.shape[2:]) == (layer.kernel,) * 2
    return is_product and conv is not None and are_plain(conv) and not has_hooks(conv)


def is_fused(backend: str, x: Tensor) -> bool:
    """Whether layers of this backend that multiply x run as one op."""
    if backend == "auto" and x.is_cuda:
        backend = chosen_backend(backend, product_dtype(x), x.device)
    return backend == "triton"


def chosen_backend(backend: str, dtype: torch.dtype, device: torch.device) -> str:
    """Backend of residual layers without BatchNorm whose products are of this dtype."""
    if backend == "auto":
        return "triton" if device.type == "cuda" and dtype.itemsize == 2 else "torch"
    return backend


def are_plain(*convs: nn.Module) -> bool:
    """Whether these are convolutions that nobody has replaced."""
    return all(type(conv) is nn.Conv2d for conv in convs)


def has_hooks(*modules: nn.Module) -> bool:
    """Whether one of them has hooks."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of products with x: autocast's where it is on, which leaves float64 alone."""
    kind = x.device.type
    if x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def fused(layers: Sequence[ResidualConv], x: Tensor) -> Tensor:
    """The layers, one after the other, as one op."""
    first = layers[0]
    return as_row(
        x,
        [layer.conv1 for layer in layers],
        [layer.conv2 for layer in layers],
        first.conv3,
        backend=first.backend,
    )


def as_row(
    x: Tensor,
    conv1: Sequence[nn.Conv2d],
    conv2: Sequence[nn.Conv2d],
    shortcut: nn.Conv2d | None,
    *,
    backend: str,
) -> Tensor:
    """``residual_layers`` of these convolutions."""
    x = x.to(product_dtype(x)).contiguous(memory_format=torch.channels_last)
    kernel, stride = conv1[0].kernel_size[0], conv1[0].stride[0]
    height, width = ((side - kernel) // stride + 1 for side in x.shape[2:])
    values = x.shape[0] * height * width * conv2[0].out_channels * len(conv1)
    return residual_layers(
        x,
        [conv.weight for conv in conv1],
        [conv.weight for conv in conv2],
        () if shortcut is None else (shortcut.weight, cast(Tensor, shortcut.bias)),
        stride=stride,
        keep_hidden=values * x.element_size() <= KEEP_BYTES,
        backend=backend,
    )
