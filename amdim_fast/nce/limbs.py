"""Float32 matrix products from float16 products: a float32 number is the sum of two float16 limbs.

A row, over a power of two that leaves its largest entry at 2**14 .. 2**15, is ``high + low`` with
both limbs in float16. They miss at most 2**-23 of an entry, or 2**-39 of the row's largest where
that is more, which is below 2**-16 of the largest. ``high high + high low + low high`` leaves out
``low low``, at most 2**-22 of a term. So limbs add at most 2**-21 of the sum of the magnitudes of
its terms to the error of a sum, and 2**-23.6 of it as a root mean square where one term dominates.
That is about three times what float32 rounds there, less than twice from eight equal terms on, and
as much as float32 rounds from some hundred on.

Tensor cores cut the sum of every 16 terms toward zero, where float32 units round to nearest, so
``high high`` is summed over ``RUN`` terms at a time and the runs are added in float32. ``low`` is
2**-11 of ``high``, so its products need no runs.

``split`` takes the scales out of rows of features. ``multiply_rows_into`` contracts features, and
both scales are of indices that remain. ``weigh_rows_into`` contracts the rows, so that their scales
go into the weights, which are split then. The same limbs of features serve both.

For m x n results of k terms there are three float16 products. The limbs take 4 bytes per entry:
those of features are made once, those of weights some rows at a time (``parts.limb_rows``). Making
them moves 26 bytes per entry of features and 34 per weight. Results move 4 bytes for ``high low``,
8 for ``low high`` and for each run, and for scales 24, or 8 of weighed rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.nce import products
from amdim_fast.nce.parts import limb_rows, scaled_rows

# Terms that are summed on tensor cores before they are added in float32.
RUN = 256
# Largest entries are below 2**EXPONENT. Rows of zeros have a scale that is 0 in float32.
EXPONENT = 15
ZERO_EXPONENT = -200


class Limbs(NamedTuple):
    """The rows ``scale * (high + low)``."""

    high: Tensor  # [n, k] float16
    low: Tensor  # [n, k] float16
    scale: Tensor  # [n, 1] float64, powers of two


def row_scales(rows: Tensor) -> Tensor:
    """[n, 1] powers of two that [n, k] rows are divided by; any for a row with an inf or a NaN."""
    largest = torch.linalg.vector_norm(rows, ord=math.inf, dim=1, keepdim=True)
    exponent = torch.frexp(largest).exponent.clamp(-148, 128)  # those of float32
    exponent = torch.where(largest == 0, ZERO_EXPONENT, exponent)
    return torch.exp2(exponent.double() - EXPONENT)


def split(matrix: Tensor, factor: Tensor | None = None) -> Limbs:
    """Limbs of the rows of float32 ``matrix * factor`` [n, k], given factors [1, k] if any.

    ``low`` is NaN at an inf, at a NaN and where the factor makes an entry overflow.
    """
    high, low = (torch.empty_like(matrix, dtype=torch.float16) for _ in range(2))
    scale = matrix.new_empty(len(matrix), 1, dtype=torch.float64)
    step = scaled_rows(matrix.shape[1])
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        part = matrix[rows] if factor is None else matrix[rows] * factor
        scale[rows] = row_scales(part)
        shifted = torch.empty_like(part) if factor is None else part
        torch.mul(part, scale[rows].reciprocal(), out=shifted)
        high[rows] = shifted
        torch.sub(shifted, high[rows], out=low[rows])
        del part, shifted
    return Limbs(high, low, scale)


def multiply_limbs_into(out: Tensor, a: Limbs, high: Tensor, low: Tensor) -> None:
    """``out = a @ (high + low)`` but for the scale of ``a``, given high and low [k, n]."""
    products.multiply_into(out, a.high, low)
    products.multiply_into(out, a.low, high, add=True)
    for left, right in zip(a.high.split(RUN, 1), high.split(RUN), strict=True):
        products.multiply_into(out, left, right, add=True)


def multiply_rows_into(out: Tensor, a: Limbs, b: Limbs) -> None:
    """``out = a @ b.T`` for float32 ``out`` [m, n] of any strides."""
    multiply_limbs_into(out, a, b.high.t(), b.low.t())
    # In float64: with one scale or without the score a product may be beyond float32.
    step = scaled_rows(out.shape[1], itemsize=8)
    for part, rows in zip(out.split(step), a.scale.split(step), strict=True):
        torch.mul(part * rows, b.scale.t(), out=part)


def weigh_rows_into(out: Tensor, weight: Tensor, rows: Limbs, *, accumulate: bool = False) -> None:
    """``out (+)= weight @ rows`` for float32 ``out`` [m, n] and ``weight`` [m, k] of any strides.

    A row of the result is NaN where a weight times the largest entry of its row overflows.
    """
    # With it a scale is at most the largest entry of its row, and more than half of that.
    unit = 2.0 ** (EXPONENT - 1)
    step = limb_rows(weight.shape[1], out.shape[1])
    for total, part in zip(out.split(step), weight.split(step), strict=True):
        left = split(part, (rows.scale.t() * unit).float())
        found = torch.empty_like(total) if accumulate else total
        multiply_limbs_into(found, left, rows.high, rows.low)
        found.mul_(left.scale / unit)
        if accumulate:
            total.add_(found)
        del left, found
