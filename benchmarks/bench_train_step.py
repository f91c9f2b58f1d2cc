"""Time of a whole training step: digits on a CPU, every size of recipe on a GPU.

    python -m benchmarks.bench_train_step
    python -m benchmarks.bench_train_step --device cuda            # three minutes at most
    python -m benchmarks.bench_train_step --device cuda --quick    # half of that
    python -m benchmarks.bench_train_step --device cuda --run      # pretrain --recipe digits

On a CPU ``amdim-fast pretrain`` runs in processes of its own and its log is read; on a GPU see
``gpu/steps.py``.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import torch

from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.step import uses_bfloat16
from benchmarks import harness
from benchmarks.gpu import steps
from benchmarks.gpu.steps import GRAPH, NAME, OURS

ROUNDS, STEPS, RECORD = 3, 50, 5
FLOAT32 = "amdim_fast, float32"


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
        harness.record(out, condition, "time", "ms", samples, beside=times)
    harness.record(
        out, _condition(recipe, "cpu-digits", OURS, precision), "data_and_views", "%", shares
    )


def _condition(recipe: Recipe, case: str, provider: str, dtype: str) -> harness.Condition:
    return harness.Condition(NAME, case, provider, "step", harness.sizes(recipe), dtype)


def measure_runs(device: str, out: Path) -> None:
    """Rows of the seconds that pretrain takes for the whole digits recipe."""
    recipe = RECIPES["digits"]
    dtype = "bfloat16" if uses_bfloat16(recipe, torch.device(device)) else "float32"
    ways = {GRAPH: ["--cuda-graph"]} if device == "cuda" else {}
    for provider, options in {**ways, OURS: ["--no-cuda-graph"]}.items():
        _, summary = harness.pretrain("--no-baselines", *options, device=device)
        sizes = harness.sizes(recipe)
        condition = harness.Condition(NAME, f"{device}-digits-run", provider, "run", sizes, dtype)
        seconds = summary["train_seconds"]
        clock = harness.WALL
        harness.record(out, condition, "training_time", "ms", [1e3 * seconds], device, clock=clock)


def main(arguments: list[str] | None = None) -> int:
    parser = harness.parser(NAME, __doc__, "cpu", "cuda")
    parser.add_argument("--run", action="store_true", help="time the whole digits recipe instead")
    parser.add_argument("--quick", action="store_true", help="on a GPU, the graph and the original")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device here; nothing was measured", file=sys.stderr)
        return 1
    if options.run:
        measure_runs(options.device, options.out)
        return 0
    if options.device == "cuda":
        return steps.measure_all(options.out, quick=options.quick)
    measure_cpu(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
