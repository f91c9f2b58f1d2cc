"""Products of half-precision matrices accumulated in float32, and float16 gradients kept in range.

The gradients of the products are too small for float16. Each row is multiplied by a power of two,
which is undone in the gradient of its source and folded into the source for that of the targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Exponent of the largest gradient of a product in float16, and the largest shift of a row.
HALF_EXPONENT = 15
LARGEST_SHIFT = 100


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32; products of half types are not rounded to them."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


def multiply_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out = a @ b`` for float32 ``out`` of any row stride."""
    if a.dtype == torch.float32:
        torch.mm(a, b, out=out)
    elif a.device.type == "cuda":
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        out.copy_(multiply(a, b))


def write_product(out: Tensor, a: Tensor, b: Tensor, factor: Tensor | None) -> None:
    """``out = factor * (a @ b)``, accumulated in float32."""
    if factor is not None:
        out.copy_(multiply(a, b).mul_(factor))
    elif out.device.type == "cuda":
        torch.mm(a, b, out=out)
    else:
        out.copy_(multiply(a, b))


def row_shifts(
    src: Tensor, trg: Tensor, grad_own: Tensor, weight: Tensor, penalty: Tensor
) -> Tensor:
    """[R] exponents of the powers of two that bring each row's largest gradient near 2**15."""
    longest = torch.linalg.vector_norm(trg, dim=-1, dtype=torch.float32).amax()
    largest = torch.linalg.vector_norm(src, dim=-1, dtype=torch.float32) * longest
    bound = torch.maximum(grad_own.abs().amax(dim=1), weight.abs().amax(dim=1))
    bound = bound + penalty.abs() * largest
    exponent = torch.frexp(bound).exponent.float()
    shift = (HALF_EXPONENT - exponent).clamp(-LARGEST_SHIFT, LARGEST_SHIFT)
    return torch.where(bound > 0, shift, LARGEST_SHIFT)


def folded_sources(src: Tensor, shift: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """A factor, and sources, that together undo the shift of each row in the gradient of trg."""
    if shift is None:
        return None, src
    least = shift.amin()
    return torch.exp2(-least), (src * torch.exp2(least - shift)[:, None]).to(src.dtype)
