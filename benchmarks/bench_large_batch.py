"""Large batches in one process: memory of the loss, of a training run, and the largest that fits.

    python -m benchmarks.bench_large_batch                    # minutes on two cores
    python -m benchmarks.bench_large_batch --device cuda      # the search of benchmarks.large_cuda

On a CPU: extra peak memory of the six costs, as in bench_nce, and the peak resident memory of
processes that train the recipe digits on all of its images at once, in micro-batches of several
sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.step import uses_bfloat16
from benchmarks import harness, large_cuda
from benchmarks.nce_providers import FORWARD_BACKWARD, MAP_SIDES, describe_plan, make_inputs, run

NAME = "large_batch"
LOSS, DIGITS = "cpu-loss", "cpu-digits"
IMAGES, WIDTH = 8192, 64
CHECKED_IMAGES, TOLERANCE = 128, 1e-4
BATCH = 4000  # every training image of the recipe
OURS = "amdim_fast"
WHOLE, CHECKPOINTED = "whole batch", "whole batch, blocks checkpointed"
MICRO_BATCHES = (1000, 250, 50)
TRAIN = """
import json, sys
from dataclasses import replace
from pathlib import Path
from amdim_fast.training.run import pretrain
from amdim_fast.training.recipes import RECIPES
folder, changes = sys.argv[1], json.loads(sys.argv[2])
recipe = replace(RECIPES["digits"], steps=2, warmup_steps=1, baselines=False, **changes)
pretrain(recipe, name="run", runs_dir=folder, log_every=1, progress=False)
status = Path("/proc/self/status").read_text().split()
records = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").open()]
print(json.dumps([1024 * int(status[status.index("VmHWM:") + 1]), [r["seconds"] for r in records]]))
"""


def provider(micro_batch: int) -> str:
    """The name of its rows."""
    return f"micro-batches of {micro_batch:,}"


PROVIDERS: dict[str, dict[str, int | bool]] = {
    WHOLE: {},
    CHECKPOINTED: {"checkpoint_blocks": True},
    **{provider(size): {"micro_batch": size} for size in MICRO_BATCHES},
}


def build(images: int, width: int) -> harness.Workload:
    """The six costs, forward and backward, with inputs of their own."""
    inputs, small = (make_inputs(count, width, "float32", "cpu") for count in (images, 32))
    return harness.Workload(
        call=lambda: run("torch", FORWARD_BACKWARD, inputs),
        warm_up=lambda: run("torch", FORWARD_BACKWARD, small),
        gradient_bytes=sum(features.numel() * features.element_size() for features in inputs.maps),
        describe=describe_plan,
    )


def measure_loss(images: int, out: Path) -> int:
    """Row of the extra peak memory; 1 if the loss disagrees with the reference."""
    inputs = make_inputs(CHECKED_IMAGES, WIDTH, "float32", "cpu")
    found, expected = (run(p, FORWARD_BACKWARD, inputs) for p in ("torch", "reference"))
    if not (difference := harness.largest_difference(found, expected)) <= TOLERANCE:
        print(f"{difference:.1e} from the reference, {TOLERANCE:.0e} allowed; no row")
        return 1
    size, note = harness.extra_peak_in_subprocess(
        "benchmarks.bench_large_batch:build", {"images": images, "width": WIDTH}
    )
    shapes = {"B": images, "D": WIDTH, "L": [side**2 for side in MAP_SIDES[1:]]}
    condition = harness.Condition(NAME, LOSS, OURS, FORWARD_BACKWARD, shapes, "float32")
    _record(condition, "extra_peak_memory", "bytes", [size], out, note)
    return 0


def measure_digits(batch: int, out: Path) -> None:
    """Rows of peak memory and of the second step's time, a process a provider."""
    recipe = RECIPES["digits"]
    shapes = {"B": batch, "D": recipe.n_rkhs, "ndf": recipe.ndf, "depth": recipe.depth}
    dtype = "bfloat16" if uses_bfloat16(recipe, torch.device("cpu")) else "float32"
    for name, changes in PROVIDERS.items():
        other_work = harness.OtherWork()
        peak, seconds = train(changes | {"batch_size": batch})
        share = other_work.share()
        note = f"BUSY MACHINE: other work took {share:.0%} of the CPUs" if share > 0.03 else ""
        condition = harness.Condition(NAME, DIGITS, name, "step", shapes, dtype)
        _record(condition, "peak_memory", "bytes", [peak], out, "resident, whole process")
        _record(condition, "time", "ms", [1e3 * (seconds[1] - seconds[0])], out, note)


def train(changes: dict[str, int | bool]) -> tuple[int, list[float]]:
    """Peak resident bytes of a process that takes two steps, and the seconds when they ended."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", TRAIN, folder, json.dumps(changes)]
        paths = [str(harness.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"training with {changes} failed:\n{done.stderr}")
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    return peak, seconds


def _record(
    condition: harness.Condition,
    metric: str,
    unit: str,
    values: list[float],
    out: Path,
    note: str,
) -> None:
    device = harness.device_name("cpu")
    row = harness.make_row(condition, metric, unit, values, device=device, note=note)
    harness.append_row(row, out)
    print(f"  {condition.case} {condition.provider}: {metric} {row['q50']:,.0f} {unit}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure and append the rows; 1 if the loss disagrees with the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--images", type=int, default=IMAGES, help="B of the loss, CPU only")
    parser.add_argument("--batch", type=int, default=BATCH, help="of the training, CPU only")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / f"{NAME}.jsonl")
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        return large_cuda.measure(options.out)
    wrong = measure_loss(options.images, options.out)
    measure_digits(options.batch, options.out)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
