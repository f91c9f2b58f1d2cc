"""A call on a GPU as a CUDA graph: the device without the host, and how many launches it is."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

DRIVER = "libcuda.so.1"
WARM_UPS = 2


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of the call, whose ``replay`` repeats it on the same memory.

    Raises:
        RuntimeError: the call waits for the device, or does anything else that has no graph.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        call()
    graph.instantiate()
    return graph


def launches(graph: torch.cuda.CUDAGraph) -> int:
    """Kernels, copies and fills of a graph.

    Raises:
        RuntimeError: the driver does not tell.
    """
    count = ctypes.c_size_t()
    handle = ctypes.c_void_p(graph.raw_cuda_graph())
    status = _driver().cuGraphGetNodes(handle, None, ctypes.byref(count))
    if status != 0:
        raise RuntimeError(f"cuGraphGetNodes of the CUDA driver failed with status {status}")
    return count.value


@cache
def _driver() -> Any:
    return ctypes.CDLL(DRIVER)
