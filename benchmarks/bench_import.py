"""Time of ``import amdim_fast`` beside ``import torch``, in fresh processes that take turns.

    python -m benchmarks.bench_import

Half a minute. The start of Python itself is part of both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks import harness

NAME = "import"
MODULES = ("torch", "amdim_fast")
REPEATS, WARM_UPS, SECONDS = 9, 1, 25


def run_import(module: str) -> None:
    """A process that imports a module and ends."""
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=harness.ROOT)


def main(arguments: list[str] | None = None) -> int:
    """Measure and append one row a module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / f"{NAME}.jsonl")
    options = parser.parse_args(arguments)
    samples = harness.time_interleaved(
        {module: partial(run_import, module) for module in MODULES},
        repeats=REPEATS,
        warm_ups=WARM_UPS,
        measure=harness.stopwatch("cpu"),
        seconds=SECONDS,
    )
    for module, times in samples.items():
        condition = harness.Condition(NAME, "cpu", module, "import", {}, "")
        row = harness.make_row(condition, "time", "ms", times, device=harness.device_name("cpu"))
        harness.append_row(row, options.out)
        print(f"  import {module}: {row['q50']:,.0f} ms, n = {row['n']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
