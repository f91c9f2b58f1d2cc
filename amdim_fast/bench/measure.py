"""How long a call takes, what memory it takes, and on which machine."""

from __future__ import annotations

import gc
import math
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.autograd import profiler

from amdim_fast.version import __version__

L2_FLUSH_BYTES = 256 * 2**20
LEAST_ROUNDS = 3

Call = Callable[[], object]
Stopwatch = Callable[[Call], float]


def quantiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """q20, q50 and q80, interpolated linearly."""
    low, middle, high = np.quantile(np.asarray(samples, dtype=np.float64), (0.2, 0.5, 0.8))
    return float(low), float(middle), float(high)


def stopwatch(device_type: str, *, idle: bool = False) -> Stopwatch:
    """Milliseconds of one call: the wall clock on a CPU, events and a cold L2 cache on a GPU.

    Args:
        device_type: "cpu" or "cuda".
        idle: whether a GPU has nothing to do when the call begins, so that all of the host's time
            before its last kernel counts; else the host is ahead while the cache is overwritten.
    """
    if device_type == "cpu":
        return _cpu_milliseconds
    flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device=device_type)

    def measure(call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        if idle:
            torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return measure


def host_milliseconds(call: Call) -> float:
    """Milliseconds until a call on an idle GPU returns, with its work enqueued and not awaited."""
    torch.cuda.synchronize()
    return _cpu_milliseconds(call)


def _cpu_milliseconds(call: Call) -> float:
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result
    return 1e3 * elapsed


def time_interleaved(
    calls: Mapping[str, Call],
    *,
    repeats: int,
    warm_ups: int,
    measure: Stopwatch,
    seconds: float = float("inf"),
) -> dict[str, list[float]]:
    """``repeats`` rounds of a sample per provider, so that drift affects all equally.

    Each round has an order of its own, the same in every call, so that none always follows the same
    one. After ``seconds`` no further round begins, except that three, or ``repeats`` if fewer, are
    always made.
    """
    for _ in range(warm_ups):
        for call in calls.values():
            call()
    samples: dict[str, list[float]] = {provider: [] for provider in calls}
    started, turns = time.monotonic(), random.Random(0)
    for finished in range(repeats):
        if finished >= LEAST_ROUNDS and time.monotonic() - started > seconds:
            break
        for provider in turns.sample(list(calls), len(calls)):
            samples[provider].append(measure(calls[provider]))
    return samples


def largest_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference, each tensor's relative to its largest expected value; inf for NaN."""
    worst = 0.0
    for actual, truth in zip(found, expected, strict=True):
        scale = truth.detach().abs().max()
        difference = float((actual.detach() - truth.detach()).abs().max() / scale)
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def relative_errors(found: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Norm of each difference, relative to that of the truth."""
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(found, truth, strict=True)]
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


def allocated_peak(call: Call, device_type: str) -> int:
    """Peak bytes of torch's allocator during a call, above those allocated before it.

    What the call returns counts. On a CPU torch's profiler lists the allocations of this thread;
    scratch memory of libraries such as oneDNN is not among them, nor are the parts of products in
    the other threads of a call, a few MiB each.
    """
    gc.collect()
    if device_type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    # Otherwise the profiler prints its start and stop to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profiler.profile(use_kineto=False, profile_memory=True) as profile:
        result = call()
    del result
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(0, int(np.cumsum(sizes).max())) if sizes else 0


def free_memory(device_type: str) -> int | None:
    """Bytes free on a GPU, or available according to the system; None if it does not say."""
    if device_type == "cuda":
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(s.split()[1]) for s in lines if s.startswith("MemAvailable:")), None)


def versions() -> dict[str, str | None]:
    """Versions of what a measurement depends on; None for what is absent."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    return {
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "amdim_fast": __version__,
    }
