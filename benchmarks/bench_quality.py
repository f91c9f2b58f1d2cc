"""Probe accuracy against steps: our loss beside the reference's, the same views, three seeds.

    python -m benchmarks.bench_quality    # half an hour on two idle cores

The recipe digits in float32. With one seed, both losses begin with the same weights, get the same
batches, views and 5x5 locations, and run at the same time, each in a process with one thread. The
linear probe is on the held-out images; its time is not training time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from amdim_fast.data.datasets import load_data
from amdim_fast.data.loader import training_batches
from amdim_fast.evaluation.linear_probe import probe_encoder, probe_pixels
from amdim_fast.training.randomness import seed_everything
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.step import Training, build_model
from amdim_fast.views.params import POLICIES
from benchmarks import harness
from benchmarks.reference_loss import use_reference

NAME = "quality"
OURS, REFERENCE, PIXELS, RANDOM = "amdim_fast", "reference loss", "raw pixels", "random weights"
SEEDS = (0, 1, 2)
STEPS = (50, 100, 200, 300, 400, 500, 600)
RECIPE = replace(RECIPES["digits"], precision="float32")


def run(provider: str, seed: int, steps: tuple[int, ...], recipe: Recipe = RECIPE) -> None:
    """Train, and print a JSON line per record: step, accuracy in percent, seconds of training."""
    torch.set_num_threads(1)
    data = load_data(recipe.data, Path("data"))
    seed_everything(seed)
    training = Training(build_model(recipe, 10), recipe, len(data.train), seed)
    if provider == REFERENCE:
        use_reference(training)
    seconds = 0.0
    with training_batches(
        data.train, recipe.batch_size, seed=seed, device=training.device
    ) as loader:
        for step in (0, *steps):
            while training.step < step:
                started = time.perf_counter()
                batch = next(loader)
                training.update(training.views(batch), batch.labels)
                seconds += time.perf_counter() - started
            probe = probe_encoder(training.model.encoder, data, POLICIES[recipe.policy])
            record = {"step": step, "accuracy": 100 * probe, "seconds": seconds}
            print(json.dumps(record), flush=True)


def measure(out: Path) -> None:
    """Both losses of each seed at the same time; appends the rows."""
    torch.set_num_threads(1)  # as the processes below have; rows name it with the device
    accuracy = 100 * probe_pixels(load_data(RECIPE.data, Path("data")))
    _record(f"{PIXELS}, seed 0", 0, "linear_probe", "%", accuracy, out)
    for seed in SEEDS:
        command = [sys.executable, "-m", f"benchmarks.bench_{NAME}", "--seed", str(seed)]
        processes = {
            provider: subprocess.Popen(
                [*command, "--run", provider], cwd=harness.ROOT, stdout=subprocess.PIPE, text=True
            )
            for provider in (OURS, REFERENCE)
        }
        for provider, process in processes.items():
            output, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(f"{provider}, seed {seed}: exit status {process.returncode}")
            for record in map(json.loads, output.splitlines()):
                step = record["step"]
                name = f"{provider if step else RANDOM}, seed {seed}"
                if step or provider == OURS:
                    _record(name, step, "linear_probe", "%", record["accuracy"], out)
                if step:
                    _record(name, step, "training_time", "ms", 1e3 * record["seconds"], out)


def _record(provider: str, step: int, metric: str, unit: str, value: float, out: Path) -> None:
    _, _, seed = provider.partition(", ")  # both losses run at once
    beside = [f"{name}, {seed}" for name in (OURS, REFERENCE)] if step else ()
    shapes = {"B": RECIPE.batch_size, "D": RECIPE.n_rkhs, "ndf": RECIPE.ndf, "step": step}
    condition = harness.Condition(NAME, f"digits-{step}", provider, "train", shapes, "float32")
    harness.record(out, condition, metric, unit, [value], beside=beside)


def main(arguments: list[str] | None = None) -> int:
    parser = harness.parser(NAME, __doc__)
    parser.add_argument("--run", choices=(OURS, REFERENCE), help="of a child process")
    parser.add_argument("--seed", type=int, help="of a child process")
    options = parser.parse_args(arguments)
    if options.run:
        run(options.run, options.seed, STEPS)
    else:
        measure(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
