"""The matrix product of the torch backend, and the library that runs it."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of ``a`` that oneDNN lays packed weights out for; others work too.
PACKED_FOR_ROWS = 1024


def product_library(tensor: Tensor, backend: str = "torch") -> str:
    """Which library multiplies: "onednn" for float32 on CPUs where torch has it, else "aten".

    "aten" is MKL, cuBLAS and the like; beside the Triton kernels cuBLAS is named. On AMD CPUs with
    AVX-512 oneDNN is about twice as fast as MKL, which runs its AVX2 code there.
    """
    if backend == "triton":
        return "cublas" if tensor.device.type == "cuda" else "aten"
    onednn = (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
    return "onednn" if onednn else "aten"


def packed(b: Tensor) -> Tensor:
    """``b`` [n, k] in the layout its library multiplies fastest; for ``product`` only."""
    if product_library(b) == "onednn":
        return torch.ops.mkldnn._reorder_linear_weight(b.contiguous(), PACKED_FOR_ROWS)
    return b


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` for a [m, k] and b [n, k] or packed b, one dtype, any strides; no autograd."""
    if product_library(a) == "onednn":
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return torch.mm(a, b.t())
