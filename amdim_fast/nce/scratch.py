"""Memory on a CPU that the chunks and pairings of a call take after one another.

Large memory that is freed there goes back to the system, which clears every page of the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """One piece of memory, as large as the largest that was taken."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: Tensor | None = None

    def take(self, shape: Sequence[int]) -> Tensor:
        """A contiguous CPU tensor, not set; what was taken before is then no longer valid."""
        size = math.prod(shape)
        if self._held is None or self._held.numel() < size:
            self._held = None
            self._held = torch.empty(size, dtype=self._dtype)
        return self._held[:size].view(*shape)
