"""The steps of residual layers: products with epilogues, and the strided layer's parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from amdim_fast.model.residual.geometry import (
    Geometry,
    columns_of,
    map_of,
    map_of_columns,
    matrix_of,
    new_map,
    rows_of,
    weight_of,
)
from amdim_fast.nce.backend import resolve_backend
from amdim_fast.nce.products import multiply_into


def rounded(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Weights in channels_last and of this dtype, those that are so already as they are."""
    formats = {4: torch.channels_last, 1: torch.contiguous_format}
    given = [weight.contiguous(memory_format=formats[weight.ndim]) for weight in weights]
    if given[0].dtype == dtype:
        return given
    made = [torch.empty_like(weight, dtype=dtype) for weight in given]
    torch._foreach_copy_(made, given)
    return made


def relu_product(a: Tensor, b: Tensor) -> Tensor:
    """``relu(a @ b.T)``; on a GPU one kernel."""
    if a.device.type == "cuda":
        return torch._addmm_activation(_zeros(len(b), a.dtype, a.device), a, b.t())
    return product(a, b.t(), a.dtype).relu_()


_ZEROS: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def _zeros(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A bias, with which cuBLAS ends a product with a ReLU; kept, unless it is of a CUDA graph."""
    key = length, dtype, device
    if key not in _ZEROS:
        found = torch.zeros(length, dtype=dtype, device=device)
        if torch.cuda.is_current_stream_capturing():
            return found
        torch.cuda.current_stream(device).synchronize()  # other streams will read it
        _ZEROS[key] = found
    return _ZEROS[key]


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b`` in this dtype, accumulated in float32 or wider."""
    made = dtype if dtype == a.dtype or dtype.itemsize >= 4 else torch.float32
    out = torch.empty((a.shape[0], b.shape[1]), dtype=made, device=a.device)
    multiply_into(out, a, b)
    return out.to(dtype)


def masked(grad: Tensor, hidden: Tensor) -> Tensor:
    """``grad``, in place 0 where the result of the ReLU is 0."""
    return torch.ops.aten.threshold_backward.grad_input(grad, hidden, 0, grad_input=grad)


def masked_product(a: Tensor, b: Tensor, hidden: Tensor, backend: str) -> Tensor:
    """``a @ b``, 0 where the result of the ReLU is 0; all of one dtype."""
    if _multiplies(a, b, hidden, backend):
        from amdim_fast.model.residual import products

        return products.product(a, b, hidden, products.MASK)
    return masked(product(a, b, a.dtype), hidden)


def added_product(a: Tensor, b: Tensor, there: Tensor, backend: str) -> Tensor:
    """``there + a @ b``, in memory of its own; all of one dtype."""
    if _multiplies(a, b, there, backend):
        from amdim_fast.model.residual import products

        return products.product(a, b, there, products.ADD)
    out = torch.empty(there.shape, dtype=there.dtype, device=there.device).copy_(there)
    multiply_into(out, a, b, add=True)
    return out


def _multiplies(a: Tensor, b: Tensor, other: Tensor, backend: str) -> bool:
    """Whether a kernel multiplies these and ends with the epilogue; else a library."""
    if a.dtype.itemsize != 2 or resolve_backend(backend, a.dtype, a.device) != "triton":
        return False
    from amdim_fast.model.residual import products

    return products.takes(a, b, other)


def wide_product(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """[B H' W', C'], conv1 of a layer that is strided, wider than 1x1 or adds channels."""
    if geometry.is_product:
        return product(columns_of(x, geometry), matrix_of(weight).t(), x.dtype)
    found = F.conv2d(x, weight, stride=geometry.stride)
    return rows_of(found.contiguous(memory_format=torch.channels_last))


def wide_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    *,
    of_x: bool,
    of_weight: torch.dtype | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and, in this dtype, of the weight, given the one of ``wide_product``."""
    grad_x = grad_weight = None
    if geometry.is_product:
        if of_x:
            grad_x = map_of_columns(product(grad, matrix_of(weight), x.dtype), geometry)
        if of_weight:
            columns = columns_of(x, geometry)
            grad_weight = weight_of(product(grad.t(), columns, of_weight), geometry.kernel)
        return grad_x, grad_weight
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        *(map_of(grad, *geometry.out_shape[2:]), x, weight, None),
        *([geometry.stride] * 2, [0, 0], [1, 1], False, [0, 0], 1),
        [of_x, of_weight is not None, False],
    )
    if of_x:
        grad_x = grad_x.contiguous(memory_format=torch.channels_last)
    if of_weight:
        grad_weight = grad_weight.to(of_weight, memory_format=torch.channels_last)
    return grad_x, grad_weight


def shortcut(x: Tensor, hidden: Tensor, geometry: Geometry, backend: str) -> Tensor:
    """The pooled x with zero channels appended, a map; ``hidden`` becomes its ReLU, in place."""
    out = new_map(x, geometry.out_shape)
    if resolve_backend(backend, x.dtype, x.device) == "triton":
        from amdim_fast.model.residual import shortcut as kernels

        kernels.shortcut(x, hidden, out, geometry)
    else:
        hidden.relu_()
        out[:, : geometry.channels] = F.avg_pool2d(x, geometry.kernel, geometry.stride)
        out[:, geometry.channels :] = 0
    return out


def add_shortcut_gradient(grad_x: Tensor, grad: Tensor, geometry: Geometry, backend: str) -> None:
    """Add to ``grad_x`` the gradient through the shortcut, given the layer's [B H' W', C']."""
    if resolve_backend(backend, grad.dtype, grad.device) == "triton":
        from amdim_fast.model.residual import shortcut as kernels

        kernels.add_shortcut_gradient(grad_x, grad, geometry)
        return
    of_pool = map_of(grad, *geometry.out_shape[2:])[:, : geometry.channels]
    sides = [geometry.kernel] * 2, [geometry.stride] * 2
    grad_x += torch.ops.aten.avg_pool2d_backward(of_pool, grad_x, *sides, [0, 0], False, True, None)
