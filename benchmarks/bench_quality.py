"""Probe accuracy against steps: our loss beside the reference's, the same views, three seeds.

    python -m benchmarks.bench_quality    # half an hour on two idle cores

The recipe digits in float32. Of one seed, both losses begin with the same weights and get the same
batches, views and 5x5 locations, and run at the same time, each in a process with one thread. The
linear probe is on the held-out images; its time is no training time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from amdim_fast.data.loader import training_batches
from amdim_fast.data.datasets import load_data
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
    """Train, and print a JSON line a record: step, accuracy in percent, seconds of training."""
    torch.set_num_threads(1)
    data = load_data(recipe.data, Path("data"))
    policy = POLICIES[recipe.policy]
    seed_everything(seed)
    training = Training(build_model(recipe, 10), recipe, len(data.train), seed)
    if provider == REFERENCE:
        use_reference(training)
    seconds = 0.0

    def say() -> None:
        accuracy = 100 * probe_encoder(training.model.encoder, data, policy)
        record = {"step": training.step, "accuracy": accuracy, "seconds": seconds}
        print(json.dumps(record), flush=True)

    say()
    options: dict[str, Any] = {"seed": seed, "device": training.device}
    with training_batches(data.train, recipe.batch_size, **options) as loader:
        while training.step < max(steps):
            started = time.perf_counter()
            batch = next(loader)
            training.update(training.views(batch), batch.labels)
            seconds += time.perf_counter() - started
            if training.step in steps:
                say()


def measure(seeds: tuple[int, ...], steps: tuple[int, ...], out: Path) -> None:
    """Both losses of each seed at the same time; appends the rows."""
    accuracy = 100 * probe_pixels(load_data(RECIPE.data, Path("data")))
    _append(f"{PIXELS}, seed 0", 0, {"linear_probe": (accuracy, "%")}, out)
    for seed in seeds:
        chosen = [str(seed), *map(str, steps)]
        processes = {
            provider: subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.bench_{NAME}", "--run", provider, *chosen],
                cwd=harness.ROOT,
                stdout=subprocess.PIPE,
                text=True,
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
                values = {"linear_probe": (record["accuracy"], "%")}
                if step:
                    values["training_time"] = (1e3 * record["seconds"], "ms")
                if step or provider == OURS:
                    _append(name, step, values, out)


def _append(provider: str, step: int, values: dict[str, tuple[float, str]], out: Path) -> None:
    shapes = {"B": RECIPE.batch_size, "D": RECIPE.n_rkhs, "ndf": RECIPE.ndf, "step": step}
    condition = harness.Condition(NAME, f"digits-{step}", provider, "train", shapes, "float32")
    for metric, (value, unit) in values.items():
        row = harness.make_row(condition, metric, unit, [value], device=harness.device_name("cpu"))
        harness.append_row(row | {"threads": 1}, out)
        print(f"  {provider}, step {step}: {metric} {value:,.4g} {unit}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / f"{NAME}.jsonl")
    parser.add_argument("--run", nargs="+", metavar="PROVIDER SEED STEP", help="of a child process")
    options = parser.parse_args(arguments)
    if options.run:
        provider, seed, *steps = options.run
        run(provider, int(seed), tuple(map(int, steps)))
    else:
        measure(SEEDS, STEPS, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
