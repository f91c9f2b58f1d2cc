"""Memory for batches, used again as soon as nobody holds the batch."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor


class Buffers:
    """Calls give uint8 tensors [n]; the memory of one that is gone serves a later one.

    New memory costs three times what reading into it does: the system clears it page by page. As
    many blocks are kept as were in use at once; one that is too small gives way to a larger one.
    Thread-safe.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque()

    def __call__(self, size: int) -> Tensor:
        """Uninitialized memory of ``size`` bytes that no other living tensor shares."""
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        if len(block) < size:
            block = np.empty(size, np.uint8)
        lease = block[:size]
        # The tensor's storage holds the array, and so do all views of it.
        ended = weakref.finalize(lease, self._free.append, block)
        ended.atexit = False
        return torch.from_numpy(lease)
