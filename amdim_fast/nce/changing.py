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


def number(value: Any) -> Any:
    """The value; of a number that changes, in a graph, a float64 tensor without dimensions.

    What torch before 2.12 calculates with such numbers is a constant, and each takes a graph.
    """
    if isinstance(value, Tensor) or not torch.compiler.is_compiling() or is_constant(value):
        return value
    return torch.ones((), dtype=torch.float64) * value
