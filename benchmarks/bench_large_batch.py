"""Large batches in one process: memory of the loss, of a training run, and the largest that fits.

    python -m benchmarks.bench_large_batch                    # minutes on two cores
    python -m benchmarks.bench_large_batch --device cuda      # the search of gpu/large.py

On a CPU: extra peak memory of the six costs, as in bench_nce, and the peak resident memory of
processes that train the recipe digits on all of its images at once, in micro-batches of several
sizes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from amdim_fast.bench.inputs import MAP_SIDES, make_inputs
from amdim_fast.bench.measure import largest_difference
from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.step import uses_bfloat16
from benchmarks import harness
from benchmarks.gpu import large
from benchmarks.nce_providers import FORWARD_BACKWARD, extra_peak, run

NAME = "large_batch"
LOSS, DIGITS = "cpu-loss", "cpu-digits"
IMAGES, WIDTH = 8192, 64
CHECKED_IMAGES, TOLERANCE = 128, 1e-4
BATCH = 4000  # every training image of the recipe
OURS = "amdim_fast"
# Provider -> an option of ``amdim-fast pretrain``.
WHOLE, CHECKPOINTED = "whole batch", "whole batch, blocks checkpointed"
CACHED = {f"micro-batches of {size:,}": f"--micro-batch={size}" for size in (1000, 250, 50)}
PROVIDERS = {WHOLE: "--no-checkpoint-blocks", CHECKPOINTED: "--checkpoint-blocks", **CACHED}


def measure_loss(out: Path) -> int:
    """Row of the extra peak memory; 1 if the loss disagrees with the reference."""
    inputs = make_inputs(CHECKED_IMAGES, WIDTH)
    found, expected = (run(p, FORWARD_BACKWARD, inputs) for p in ("torch_objective", "reference"))
    if not (difference := largest_difference(found, expected)) <= TOLERANCE:
        print(f"{difference:.1e} from the reference, {TOLERANCE:.0e} allowed; no row")
        return 1
    size, note = extra_peak("torch_objective", FORWARD_BACKWARD, make_inputs(IMAGES, WIDTH))
    shapes = {"B": IMAGES, "D": WIDTH, "L": [side**2 for side in MAP_SIDES[1:]]}
    condition = harness.Condition(NAME, LOSS, OURS, FORWARD_BACKWARD, shapes, "float32")
    harness.record(out, condition, "extra_peak_memory", "bytes", [size], note=note)
    return 0


def measure_digits(out: Path) -> None:
    """Rows of peak memory and of the second step's time, one process per provider."""
    recipe = RECIPES["digits"]
    shapes = {**harness.sizes(recipe), "B": BATCH}
    dtype = "bfloat16" if uses_bfloat16(recipe, torch.device("cpu")) else "float32"
    for provider, option in PROVIDERS.items():
        other_work = harness.OtherWork()
        records, summary = harness.pretrain(
            *("--steps=2", "--warmup-steps=1", "--no-baselines", "--log-every=1"),
            *(f"--batch-size={BATCH}", option),
        )
        note = other_work.note()
        condition = harness.Condition(NAME, DIGITS, provider, "step", shapes, dtype)
        peak = [summary["peak_memory_bytes"]]
        harness.record(out, condition, "peak_memory", "bytes", peak, note="resident, whole process")
        first, second = (record["seconds"] for record in records)
        harness.record(out, condition, "time", "ms", [1e3 * (second - first)], note=note)


def main(arguments: list[str] | None = None) -> int:
    """Measure and append the rows; 1 if the loss disagrees with the reference."""
    options = harness.parser(NAME, __doc__, "cpu", "cuda").parse_args(arguments)
    if options.device == "cpu":
        wrong = measure_loss(options.out)
        measure_digits(options.out)
        return wrong
    if not torch.cuda.is_available():
        print("torch finds no CUDA device here; nothing was measured", file=sys.stderr)
        return 1
    return max([large.measure_provider(NAME, p, options.out) for p in large.PROVIDERS])


if __name__ == "__main__":
    sys.exit(main())
