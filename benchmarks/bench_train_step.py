"""Time of a whole training step: digits on a CPU, large models on a GPU.

    python -m benchmarks.bench_train_step
    python -m benchmarks.bench_train_step --device cuda

On a CPU ``amdim-fast pretrain`` runs in processes of its own and its log is read. On a GPU the step
is timed on synthetic uint8 images, eager and compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from amdim_fast.data.loader import Batch
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.step import Training, build_model, uses_bfloat16
from benchmarks import harness

NAME = "train_step"
ROUNDS, STEPS, RECORD = 3, 50, 5
OURS, FLOAT32 = "amdim_fast", "amdim_fast, float32"
COMPILED = "amdim_fast, compiled"
CUDA_CASES = {"cifar10": 32, "imagenet128": 160}  # recipe: side of its synthetic images
SECONDS = 25


def logged_steps(precision: str) -> tuple[list[float], list[float]]:
    """Milliseconds a step, and percent of data and views, of one run of pretrain."""
    records, _ = harness.pretrain(
        *(f"--steps={STEPS}", "--warmup-steps=5", "--no-baselines"),
        *(f"--log-every={RECORD}", f"--precision={precision}"),
    )
    records = records[2:]  # the first steps load libraries
    times = [
        1e3 * (b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(records)
    ]
    return times, [100 * (record["data_wait_share"] + record["views_share"]) for record in records]


def measure_cpu(out: Path) -> None:
    """The digits recipe; precisions take turns."""
    recipe = RECIPES["digits"]
    precision = "bfloat16" if uses_bfloat16(recipe, torch.device("cpu")) else "float32"
    precisions = {OURS: precision, FLOAT32: "float32"}
    times: dict[str, list[float]] = {provider: [] for provider in precisions}
    shares: list[float] = []
    for _ in range(ROUNDS):
        for provider, chosen in precisions.items():
            found, percent = logged_steps(chosen)
            times[provider] += found
            shares += percent if provider == OURS else []
    for provider, samples in times.items():
        condition = _condition(recipe, "cpu-digits", provider, precisions[provider])
        harness.record(out, condition, "time", "ms", samples)
    harness.record(
        out, _condition(recipe, "cpu-digits", OURS, precision), "data_and_views", "%", shares
    )


def _condition(recipe: Recipe, case: str, provider: str, dtype: str) -> harness.Condition:
    return harness.Condition(NAME, case, provider, "step", harness.sizes(recipe), dtype)


def cuda_step(recipe: Recipe, images: Tensor) -> Callable[[], object]:
    """The callable of a whole step on images that are on the device already."""
    training = Training(build_model(recipe, 10).cuda(), recipe, len(images), seed=0)
    labels = torch.arange(len(images), device="cuda") % 10
    batch = Batch(torch.arange(len(images)), images, labels)
    return lambda: training.update(training.views(batch), labels)


def measure_cuda(out: Path) -> None:
    """Every case and provider: images/s and peak memory."""
    for case, side in CUDA_CASES.items():
        recipe = replace(RECIPES[case], precision="bfloat16")
        images = torch.randint(0, 256, (recipe.batch_size, side, side, 3), dtype=torch.uint8)
        for provider in (OURS, COMPILED):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            variant = replace(recipe, compile=provider == COMPILED)
            call = cuda_step(variant, images.cuda())
            samples, note = harness.timed(
                {provider: call}, "cuda", repeats=10, warm_ups=2, seconds=SECONDS
            )
            rates = [1e3 * recipe.batch_size / sample for sample in samples[provider]]
            peak = [float(torch.cuda.max_memory_allocated())]
            condition = _condition(recipe, f"cuda-{case}", provider, "bfloat16")
            harness.record(out, condition, "rate", "images/s", rates, "cuda", note=note)
            harness.record(out, condition, "peak_memory", "bytes", peak, "cuda")
            del call
            torch._dynamo.reset()


def main(arguments: list[str] | None = None) -> int:
    options = harness.parser(NAME, __doc__, "cpu", "cuda").parse_args(arguments)
    {"cpu": measure_cpu, "cuda": measure_cuda}[options.device](options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
