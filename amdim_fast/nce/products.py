"""The matrix products of the contrastive ops, and the library that runs them.

Half types are multiplied as they are on a GPU and accumulated in float32; on CPUs they are
converted, some target images at a time.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from amdim_fast.nce.parts import scaled_rows
from amdim_fast.optional import load_cpu

# Products of fewer multiplications take longer to pack and hand out than to make in MKL.
LEAST_ONEDNN = 2**27
# Where MKL's vectors are as wide, those of fewer rows take longer to pack than oneDNN gains.
LEAST_ROWS = 3072
# Number of rows of ``a`` that oneDNN optimizes packed weights for; others work too.
PACKED_FOR_ROWS = 1024
# Temporary memory of products that are converted, beside what plans count.
PART_BYTES = 8 * 2**20


def product_library(
    device: torch.device,
    dtype: torch.dtype,
    backend: str = "torch",
    multiplications: int = LEAST_ONEDNN,
    rows: int = LEAST_ROWS,
) -> str:
    """Which library multiplies: "onednn" for large products in float32 on some CPUs, else "aten".

    "aten" is MKL, cuBLAS and the like; beside the Triton kernels cuBLAS has its own name, "cublas".
    On AMD CPUs oneDNN is faster than MKL, which runs its AVX2 code there: with AVX-512 a tenth on
    some, twice on others, without it a tenth where there are many rows. It is called in parts by
    the compiled library, and needs that. On Intel's MKL is faster.
    """
    if backend == "triton":
        return "cublas" if device.type == "cuda" else "aten"
    if device.type != "cpu" or dtype != torch.float32 or multiplications < LEAST_ONEDNN:
        return "aten"
    return "aten" if rows < LEAST_ROWS and _mkl_keeps_up() else _cpu_library()


def _is_intel() -> bool:
    """Whether this is known to be Intel's CPU."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def has_onednn() -> bool:
    """Whether torch has the library, and the compiled library is there to call it."""
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return known and load_cpu()


@functools.cache
def _cpu_library() -> str:
    """The faster library for float32, by CPU and build alone: runs on one agree to the bit."""
    if torch.backends.mkl.is_available() and _is_intel():
        return "aten"
    return "onednn" if has_onednn() else "aten"


@functools.cache
def _mkl_keeps_up() -> bool:
    """Whether MKL's vectors are as wide as oneDNN's."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.backends.mkl.is_available() and not wide


def packed(b: Tensor, rows: int) -> Tensor:
    """``b`` [n, k] as its library multiplies it fastest, for ``product`` with so many rows."""
    library = product_library(b.device, b.dtype, multiplications=rows * b.numel(), rows=rows)
    if library == "onednn":
        return torch.ops.mkldnn._reorder_linear_weight(b.contiguous(), PACKED_FOR_ROWS)
    return b


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` for a [m, k], any strides, and packed b [n, k], of one dtype; no autograd."""
    if b.is_mkldnn:
        out = a.new_empty(len(a), b.shape[0])
        product_into(out, a, b)
        return out
    return torch.mm(a, b.t())


def product_into(out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> None:
    """``out[...] = product(a, b)`` or, with ``add``, ``+=``; rounded to the dtype of ``out``."""
    if not b.is_mkldnn:
        multiply_into(out, a, b.t(), add=add)
        return
    if out.dtype == torch.float32:
        torch.ops.amdim_fast.rows_product_(out, a.detach(), b, add)
        return
    rows = max(1, PART_BYTES // (out.shape[1] * a.element_size()))
    for part, factor in zip(out.split(rows), a.split(rows), strict=True):
        if add:
            part.add_(product(factor, b))
        else:
            part.copy_(product(factor, b))


def columns_product_into(out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> None:
    """``out = a.T @ b`` or, with ``add``, ``+=``, for a [k, m] and b [k, n] of one dtype.

    oneDNN needs a copy of the first, which gains as little as short products do.
    """
    multiplications = len(a) * out.numel()
    if product_library(a.device, a.dtype, multiplications=multiplications, rows=0) == "onednn":
        torch.ops.amdim_fast.columns_product_(out, a.detach(), b.detach(), add)
    else:
        multiply_into(out, a.t(), b, add=add)


def multiply_into(out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> None:
    """``out = a @ b`` or, with ``add``, ``out += a @ b``, accumulated in float32 or wider.

    Any types, where the widest is no wider than float32 or all are float64.
    """
    if a.dtype == b.dtype == out.dtype and (a.device.type == "cuda" or a.dtype.itemsize >= 4):
        if add:
            torch.addmm(out, a, b, out=out)
        else:
            torch.mm(a, b, out=out)
    elif a.device.type == "cuda":
        # cuBLAS takes a single row for a bias.
        if add and len(out) > 1 and _adds_in_float32(a.device):
            torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
        elif add:
            out.add_(torch.mm(a, b, out_dtype=torch.float32))
        else:
            torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        _multiply_parts(out, a, b, add=add)


@functools.cache
def _adds_in_float32(device: torch.device) -> bool:
    """Whether ``torch.addmm`` adds products of half types to a float32 matrix; it once did not."""
    half = torch.zeros((16, 16), dtype=torch.bfloat16, device=device)
    total = half.float()
    try:
        torch.addmm(total, half, half, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return False
    return True


def _multiply_parts(out: Tensor, a: Tensor, b: Tensor, *, add: bool) -> None:
    """As ``multiply_into`` on a CPU, for half types: converted in parts of the longest side."""
    (m, k), n = a.shape, b.shape[1]
    second = sorted((m, k, n))[1]
    part = max(1, PART_BYTES // (4 * second))
    if k > max(m, n):
        total = out if out.dtype == torch.float32 else torch.empty(out.shape)
        if not add:
            total.zero_()
        elif total is not out:
            total.copy_(out)
        for left, right in zip(a.split(part, 1), b.split(part), strict=True):
            total.addmm_(left.float(), right.float())
        if total is not out:
            out.copy_(total)
    elif m >= n:
        right = b.float()
        for o, left in zip(out.split(part), a.split(part), strict=True):
            _multiply_wide(o, left.float(), right, add=add)
    else:
        left = a.float()
        for o, right in zip(out.split(part, 1), b.split(part, 1), strict=True):
            _multiply_wide(o, left, right.float(), add=add)


def _multiply_wide(out: Tensor, a: Tensor, b: Tensor, *, add: bool) -> None:
    """As ``multiply_into`` for float32 factors."""
    if out.dtype == torch.float32:
        multiply_into(out, a, b, add=add)
    else:
        found = torch.mm(a, b)
        out.copy_(found.add_(out) if add else found)


def folded(src: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Sources, and a factor, that together undo the power of two on each row of gradients.

    The smallest exponent is left to the factor, so that no source grows.
    """
    least = exponents.amin()
    return (src * torch.exp2(least - exponents)[:, None]).to(src.dtype), torch.exp2(-least)


def add_scaled(total: Tensor, a: Tensor, b: Tensor, factor: Tensor, *, add: bool) -> None:
    """``total (+)= factor * (a @ b)``, accumulated in float32, some rows at a time."""
    rows = scaled_rows(total.shape[1])
    work = torch.empty_like(total[:rows], dtype=torch.float32)
    for part, left in zip(total.split(rows), a.split(rows), strict=True):
        found = work[: len(part)]
        multiply_into(found, left, b)
        found.mul_(factor)
        if add:
            part.add_(found)
        else:
            part.copy_(found)
