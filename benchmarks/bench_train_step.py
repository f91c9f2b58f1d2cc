"""Time of a whole training step: digits on a CPU beside an older tree, large models on a GPU.

    python -m benchmarks.bench_train_step --baseline TREE    # git worktree of the version before
    python -m benchmarks.bench_train_step --device cuda

On a CPU the command's own loop runs in processes of each tree in turn and its log is read. On a GPU
the step is timed on synthetic uint8 images, eager and compiled, beside the same encoder with the
reference loss and Pillow views made by one process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amdim_fast.data.loader import Batch
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.step import Training, build_model, uses_bfloat16
from amdim_fast.views.params import POLICIES
from benchmarks import harness
from benchmarks.augment_providers import pillow
from benchmarks.reference_loss import use_reference

NAME = "train_step"
ROUNDS, STEPS, RECORD = 3, 50, 5
OURS, FLOAT32, FIRST = "amdim_fast", "amdim_fast, float32", "first version"
EAGER, COMPILED, PLAIN = "amdim_fast", "amdim_fast, compiled", "reference loss, Pillow views"
CUDA_CASES = {"cifar10": 32, "imagenet128": 160}  # recipe: side of its synthetic images
SECONDS = 25
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from amdim_fast.training.run import pretrain
from amdim_fast.training.recipes import RECIPES
chosen = {"precision": sys.argv[5]} if sys.argv[5:] else {}
recipe = replace(RECIPES["digits"], steps=int(sys.argv[2]), warmup_steps=5, **chosen)
pretrain(recipe, name="run", runs_dir=sys.argv[3], log_every=int(sys.argv[4]), progress=False)
"""


def logged_steps(tree: Path, *precision: str) -> tuple[list[float], list[float]]:
    """Milliseconds a step and share of data and views, of a run of the command of a tree."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(tree), str(STEPS), folder, str(RECORD), *precision]
        subprocess.run([sys.executable, "-c", RUN, *arguments], check=True, cwd=folder)
        lines = (Path(folder) / "run" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines][2:]  # the first steps load libraries
    times = [
        1e3 * (b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(records)
    ]
    shares = [r["data_wait_share"] + r["views_share"] for r in records if "views_share" in r]
    return times, shares


def measure_cpu(baseline: Path | None, out: Path) -> None:
    """The digits recipe; trees take turns."""
    recipe = RECIPES["digits"]
    precision = "bfloat16" if uses_bfloat16(recipe, torch.device("cpu")) else "float32"
    runs: dict[str, list[Any]] = {OURS: [harness.ROOT, precision]}
    runs[FLOAT32] = [harness.ROOT, "float32"]
    if baseline:
        runs[FIRST] = [baseline.resolve()]
    times: dict[str, list[float]] = {provider: [] for provider in runs}
    shares: list[float] = []
    for _ in range(ROUNDS):
        for provider, run in runs.items():
            found, share = logged_steps(*run)
            times[provider] += found
            shares += share if provider == OURS else []
    percent = [100 * share for share in shares]
    measured = [(provider, "time", "ms", samples) for provider, samples in times.items()]
    for provider, metric, unit, samples in [*measured, (OURS, "data_and_views", "%", percent)]:
        dtype = precision if provider == OURS else "float32"
        note = harness.commit(runs[provider][0])[:10]
        _append(recipe, "digits", provider, metric, unit, samples, out, "cpu", note, dtype)


def cuda_step(recipe: Recipe, images: Tensor, provider: str) -> Callable[[], object]:
    """One whole step of a provider on images that are on the device already."""
    training = Training(build_model(recipe, 10).cuda(), recipe, len(images), seed=0)
    labels = torch.arange(len(images), device="cuda") % 10
    batch = Batch(torch.arange(len(images)), images, labels)
    if provider != PLAIN:
        return lambda: training.update(training.views(batch), labels)
    policy = POLICIES[recipe.policy]
    views = pillow(policy, images.cpu(), torch.bfloat16)
    use_reference(training)

    def step() -> Tensor:
        made: Any = views()
        return training.update(torch.stack(made).cuda().bfloat16(), labels)

    return step


def busy_share(call: Callable[[], object]) -> float:
    """Percent of the wall clock in which a kernel ran, over a few calls."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - started
    kernels = sum(event.self_device_time_total for event in profile.key_averages())
    return min(100.0, 100 * kernels / 1e6 / elapsed)


def measure_cuda(out: Path) -> None:
    """Every case and provider: images/s, peak memory and GPU busy share."""
    for case, side in CUDA_CASES.items():
        recipe = replace(RECIPES[case], precision="bfloat16")
        images = torch.randint(0, 256, (recipe.batch_size, side, side, 3), dtype=torch.uint8)
        for provider in (EAGER, COMPILED, PLAIN):
            variant = replace(recipe, compile=provider == COMPILED)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            call = cuda_step(variant, images.cuda(), provider)
            samples = harness.time_interleaved(
                {provider: call},
                repeats=10,
                warm_ups=2,
                measure=harness.stopwatch("cuda"),
                seconds=SECONDS,
            )[provider]
            rates = [1e3 * recipe.batch_size / sample for sample in samples]
            peak = [float(torch.cuda.max_memory_allocated())]
            for metric, unit, values in (
                ("rate", "images/s", rates),
                ("peak_memory", "bytes", peak),
                ("gpu_busy", "%", [busy_share(call)]),
            ):
                _append(recipe, case, provider, metric, unit, values, out, "cuda", "")
            del call
            torch._dynamo.reset()


def _append(
    recipe: Recipe,
    case: str,
    provider: str,
    metric: str,
    unit: str,
    samples: list[float],
    out: Path,
    device: str,
    note: str,
    dtype: str = "bfloat16",
) -> None:
    shapes = {"B": recipe.batch_size, "D": recipe.n_rkhs, "ndf": recipe.ndf, "depth": recipe.depth}
    condition = harness.Condition(NAME, f"{device}-{case}", provider, "step", shapes, dtype)
    row = harness.make_row(
        condition, metric, unit, samples, device=harness.device_name(device), note=note
    )
    harness.append_row(row, out)
    print(f"  {case} {provider}: {metric} {row['q50']:,.4g} {unit}, n = {row['n']}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--baseline", type=Path, help="tree of an older version, CPU only")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / f"{NAME}.jsonl")
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        measure_cuda(options.out)
    else:
        measure_cpu(options.baseline, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
