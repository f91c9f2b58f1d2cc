"""Launches of the kernels of strided residual layers."""

from __future__ import annotations

from torch import Tensor

from amdim_fast.kernels import launch, residual
from amdim_fast.model.residual.geometry import Geometry

PIXELS, CHANNELS = 16, 64
MOST_PIXELS = 2**31 - 1


def shortcut(x: Tensor, hidden: Tensor, out: Tensor, geometry: Geometry) -> None:
    """Write the pooled x with zero channels to ``out``, and the ReLU of ``hidden`` over it."""
    batch, channels, height, width = geometry.out_shape
    _launch(
        residual.residual_shortcut,
        (x, hidden, out),
        batch * height * width,
        channels,
        geometry,
    )


def add_shortcut_gradient(grad_x: Tensor, grad: Tensor, geometry: Geometry) -> None:
    """Add to ``grad_x`` the gradient through the shortcut, given the one of the layer."""
    pixels = geometry.batch * geometry.height * geometry.width
    _launch(
        residual.residual_shortcut_backward, (grad, grad_x), pixels, geometry.channels, geometry
    )


def _launch(
    kernel: object, tensors: tuple[Tensor, ...], pixels: int, channels: int, geometry: Geometry
) -> None:
    if pixels > MOST_PIXELS:
        raise ValueError(
            f"the map of a residual layer has {pixels} pixels; it must have at most {MOST_PIXELS}:"
            " encode fewer images at a time"
        )
    if pixels == 0:
        return
    _, out_channels, out_height, out_width = geometry.out_shape
    launch.launch(
        kernel,
        (-(-pixels // PIXELS), -(-channels // CHANNELS)),
        *tensors,
        pixels,
        geometry.height,
        geometry.width,
        geometry.channels,
        out_height,
        out_width,
        out_channels,
        KERNEL=geometry.kernel,
        STRIDE=geometry.stride,
        PIXELS=PIXELS,
        CHANNELS=CHANNELS,
    )
