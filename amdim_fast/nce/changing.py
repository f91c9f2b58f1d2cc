"""Numbers that change from call to call of a graph of ``torch.compile``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_constant(value: Any) -> bool:
    """Whether a graph that is being traced may take the value as its own; a tensor is none."""
    if isinstance(value, Tensor):
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return bool(has_static_value(value))


def times(value: float, factor: float) -> Any:
    """The product; of a number that changes a float64 tensor without dimensions.

    What torch before 2.12 calculates with such numbers is a constant, and each takes a graph.
    """
    if torch.compiler.is_compiling() and not is_constant(value):
        return torch.ones((), dtype=torch.float64) * value * factor
    return value * factor
