"""The matrix product of the torch backend, and the library that runs it."""

from __future__ import annotations

import torch
from torch import Tensor

# Number of rows of ``a`` that oneDNN optimizes packed weights for; others work too.
PACKED_FOR_ROWS = 1024
# Temporary memory of ``product_into`` where the library cannot write into the output itself.
PART_BYTES = {"cpu": 4 * 2**20}
GPU_PART_BYTES = 64 * 2**20


def product_library(tensor: Tensor, backend: str = "torch") -> str:
    """Which library multiplies: "onednn" for float32 on CPUs if torch has it, else "aten".

    "aten" is MKL, cuBLAS and the like; beside the Triton kernels cuBLAS has its own name, "cublas".
    On AMD CPUs with AVX-512 oneDNN is about twice as fast as MKL, which runs its AVX2 code there.
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
    """``b`` [n, k] in the layout that its library multiplies fastest; only ``product`` takes it."""
    if product_library(b) == "onednn":
        return torch.ops.mkldnn._reorder_linear_weight(b.contiguous(), PACKED_FOR_ROWS)
    return b


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` for a [m, k] and b [n, k] or packed b, one dtype, any strides; no autograd."""
    if product_library(a) == "onednn":
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return torch.mm(a, b.t())


def product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out[...] = product(a, b)``, rounded to the dtype of the contiguous ``out`` [m, n]."""
    if product_library(a) == "aten" and out.dtype == a.dtype:
        torch.mm(a, b.t(), out=out)
        return
    part_bytes = PART_BYTES.get(a.device.type, GPU_PART_BYTES)
    rows = max(1, part_bytes // (out.shape[1] * a.element_size()))
    for part, factor in zip(out.split(rows), a.split(rows), strict=True):
        part.copy_(product(factor, b))
