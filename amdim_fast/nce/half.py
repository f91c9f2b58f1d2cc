"""Products of half-precision matrices without rounding on the way, and float16 kept in range.

The gradients of the products are far below what float16 holds. Each row is multiplied by a power of
two: undone in the gradient of its source, folded into the source for the gradient of the targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Largest magnitude of a float16 gradient of a product, 2**15, and the powers of two within reach.
HALF_EXPONENT = 15
LARGEST_SHIFT = 100


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32; half types are not rounded on the way."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


def multiply_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out = a @ b``, float32 and of any row stride."""
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
    """[R] powers of two that bring each row's largest gradient of a product near 2**15."""
    longest = torch.linalg.vector_norm(trg, dim=-1, dtype=torch.float32).amax()
    largest = torch.linalg.vector_norm(src, dim=-1, dtype=torch.float32) * longest
    bound = torch.maximum(grad_own.abs().amax(dim=1), weight.abs().amax(dim=1))
    bound = bound + penalty.abs() * largest
    exponent = torch.frexp(bound).exponent.float()
    shift = (HALF_EXPONENT - exponent).clamp(-LARGEST_SHIFT, LARGEST_SHIFT)
    return torch.where(bound > 0, shift, LARGEST_SHIFT)


def folded_sources(src: Tensor, shift: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """A common factor and the sources that undo the shift of each row in the gradient of trg."""
    if shift is None:
        return None, src
    least = shift.amin()
    return torch.exp2(-least), (src * torch.exp2(least - shift)[:, None]).to(src.dtype)
