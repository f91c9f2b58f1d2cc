"""Large memory on a CPU, which malloc takes from the system each time, and gives back.

The system clears each page of it at its first use. So scores take the same memory one after
another, and what is new comes in huge pages where Linux has them: 2 MiB a fault instead of 4 KiB.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# The largest threshold from which glibc's malloc maps memory.
LARGE_BYTES = 32 * 2**20


@functools.cache
def _madvise() -> Callable[[int, int, int], Any] | None:
    """The C library's madvise; None where it has no huge pages to ask for."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def in_huge_pages(new: Tensor) -> Tensor:
    """The tensor; if it is large and on a CPU, Linux may back it by huge pages when it is written.

    Args:
        new: contiguous, nothing written yet.
    """
    size = new.nbytes
    if size < LARGE_BYTES or new.device.type != "cpu":
        return new
    advise = _madvise()
    if advise is not None:
        first = -(-new.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (new.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(first, last - first, mmap.MADV_HUGEPAGE)  # an error means small pages
    return new


class Scratch:
    """Memory that the chunks and pairings of a call take after one another."""

    def __init__(self) -> None:
        self._held: Tensor | None = None

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous CPU tensor, not set; what was taken before is then no longer valid."""
        size = math.prod(shape)
        if self._held is None or self._held.dtype != dtype or self._held.numel() < size:
            self._held = None
            self._held = in_huge_pages(torch.empty(size, dtype=dtype))
        return self._held[:size].view(*shape)
