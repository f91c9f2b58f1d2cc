"""Time and peak memory of callables, and the JSON rows that record them.

``python -m benchmarks.harness MODULE:FUNCTION JSON`` is the fresh process of one CPU memory
measurement: it prints what ``extra_peak_in_subprocess`` returns.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amdim_fast.bench.measure import Stopwatch as Stopwatch
from amdim_fast.bench.measure import device_name as device_name
from amdim_fast.bench.measure import quantiles as quantiles
from amdim_fast.bench.measure import stopwatch as stopwatch
from amdim_fast.bench.measure import time_interleaved as time_interleaved
from amdim_fast.bench.measure import versions as versions
from benchmarks import sources

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# glibc's own threshold moves with the sizes freed, and the resident set of one and the same call
# with it; a fixed one returns every freed tensor to the system.
CHILD_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
# What measuring writes; it does not make a commit dirty.
OUTPUTS = ("benchmarks/results", "benchmarks/plots")


@dataclass(frozen=True)
class Workload:
    """One provider in one mode, with its inputs already made.

    Attributes:
        call: the measured work; what it returns stays alive until the peak has been read.
        warm_up: a small call that loads libraries and starts threads.
        gradient_bytes: bytes of the gradients in the result, which any provider must produce.
        describe: a note on the latest call, such as the plan it followed.
    """

    call: Callable[[], object]
    warm_up: Callable[[], object]
    gradient_bytes: int = 0
    describe: Callable[[], str] = str


@dataclass(frozen=True)
class Condition:
    """What is measured; rows of one condition replace each other in the report."""

    name: str
    case: str
    provider: str
    mode: str
    shapes: Mapping[str, Any]
    dtype: str


class OtherWork:
    """Share of the machine's CPUs that other processes took since it was made; Linux only."""

    def __init__(self) -> None:
        self._start = self._seconds()

    def share(self) -> float:
        """0 for an idle machine, 1 where others had all of it."""
        wall, busy, own = (b - a for a, b in zip(self._start, self._seconds(), strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        user, nice, system, _idle, _iowait, *interrupts = (
            int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, sum(os.times()[:4])  # ended children included


def largest_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference, each tensor's relative to its largest expected value; inf for NaN."""
    worst = 0.0
    for actual, truth in zip(found, expected, strict=True):
        scale = truth.detach().abs().max()
        difference = float((actual.detach() - truth.detach()).abs().max() / scale)
        worst = max(worst, difference if np.isfinite(difference) else float("inf"))
    return worst


def extra_peak_cuda(workload: Workload) -> tuple[int, str]:
    """Bytes the call allocates at its peak, less the gradients', and the workload's note."""
    workload.warm_up()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = workload.call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return peak - before - workload.gradient_bytes, workload.describe()


def extra_peak_cpu(workload: Workload) -> tuple[int, str]:
    """As ``extra_peak_cuda``, from the resident set of this process; Linux only.

    Meaningful in a fresh process only: memory that earlier calls left behind hides new peaks.
    """
    workload.warm_up()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result = workload.call()
    peak = _status_bytes("VmHWM")
    del result
    return peak - before - workload.gradient_bytes, workload.describe()


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}; CPU memory is measured on Linux only")


def extra_peak_in_subprocess(target: str, arguments: Mapping[str, Any]) -> tuple[int, str]:
    """``extra_peak_cpu`` of the Workload that ``module:function`` makes, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.harness", target, json.dumps(arguments)]
    environment = {**os.environ, **CHILD_ENVIRONMENT}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if finished.returncode != 0:
        raise RuntimeError(f"measuring {target} {dict(arguments)} failed:\n{finished.stderr}")
    size, note = json.loads(finished.stdout.splitlines()[-1])
    return int(size), str(note)


def commit(root: Path = ROOT) -> str:
    """Commit of the working tree, "-dirty" added if files differ from it; "unknown" outside git."""
    excluded = [f":!{path}" for path in OUTPUTS]
    head = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", ".", *excluded)
    if head is None or changes is None:
        return "unknown"
    return head + ("-dirty" if changes else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def make_row(
    condition: Condition,
    metric: str,
    unit: str,
    samples: Sequence[float],
    *,
    device: str,
    note: str = "",
    measured: bool = True,
) -> dict[str, Any]:
    """One row; a calculated value (``measured=False``) has n = 0."""
    row: dict[str, Any] = {**asdict(condition), "metric": metric, "unit": unit}
    row.update(zip(("q20", "q50", "q80"), quantiles(samples), strict=True))
    row["n"] = len(samples) if measured else 0
    row.update(note=note, device=device, versions=versions(), commit=commit())
    row["source"] = sources.digest(condition.name)
    row["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return row


def append_row(row: Mapping[str, Any], path: Path) -> None:
    """Append ``row`` to a .jsonl file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _main(target: str, arguments: str) -> None:
    module, function = target.split(":")
    workload = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print(json.dumps(extra_peak_cpu(workload)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
