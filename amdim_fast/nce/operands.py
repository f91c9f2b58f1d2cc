"""Features as products take them, plain or in limbs, and the products with them.

Matrices of scores and of their gradients may have any strides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amdim_fast.nce import limbs
from amdim_fast.nce.limbs import Limbs
from amdim_fast.nce.products import add_scaled, folded, multiply_into

Operand = Tensor | Limbs


def operand(rows: Tensor, *, in_limbs: bool) -> Operand:
    """Rows of features [n, D], split once for all products if they are to be in limbs."""
    return limbs.split(rows) if in_limbs else rows


def row_count(rows: Operand) -> int:
    """N."""
    return len(rows.high) if isinstance(rows, Limbs) else len(rows)


def rows_of(rows: Operand, first: int, last: int) -> Operand:
    """Rows ``first`` .. ``last - 1``."""
    if isinstance(rows, Limbs):
        return Limbs(*(part[first:last] for part in rows))
    return rows[first:last]


def write_products(out: Tensor, a: Operand, b: Operand) -> None:
    """``out = a @ b.T`` for rows of features a [m, D] and b [n, D]."""
    if isinstance(a, Limbs) and isinstance(b, Limbs):
        limbs.multiply_rows_into(out, a, b)
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        multiply_into(out, a, b.t())


def write_source_gradient(
    out: Tensor, grads: Tensor, exponents: Tensor | None, trg: Operand, *, add: bool
) -> None:
    """``out [C, D] (+)= grads [C, n L] @ trg [n L, D]``, each row less its power of two."""
    if isinstance(trg, Limbs):
        limbs.weigh_rows_into(out, grads, trg, accumulate=add)
    elif exponents is None:
        multiply_into(out, grads, trg, add=add)
    else:
        found = torch.empty_like(out) if add else out
        multiply_into(found, grads, trg)
        found.mul_(torch.exp2(-exponents)[:, None])
        if add:
            out.add_(found)


def write_target_gradient(
    out: Tensor, grads: Tensor, exponents: Tensor | None, src: Operand, *, add: bool
) -> None:
    """``out [n L, D] (+)= grads.T [n L, C] @ src [C, D]``, each row less its power of two."""
    if isinstance(src, Limbs):
        limbs.weigh_rows_into(out, grads.t(), src, accumulate=add)
    elif exponents is None:
        multiply_into(out, grads.t(), src, add=add)
    else:
        sources, factor = folded(src, exponents)
        add_scaled(out, grads.t(), sources, factor, add=add)
