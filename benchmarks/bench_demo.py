"""Rows of one finished run of ``make demo``: probe accuracy, seconds, memory.

python -m benchmarks.bench_demo runs/NAME/run    # on the machine where it ran
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from amdim_fast.training.recipes import Recipe
from amdim_fast.training.step import uses_bfloat16
from benchmarks import harness
from benchmarks.harness import WALL

NAME = "demo"
PRETRAINED = "encoder after pre-training"
ACCURACIES = {
    "raw pixels": "accuracy_raw_pixels",
    "encoder at random weights": "accuracy_random_weights",
    PRETRAINED: "accuracy_pretrained",
}


def main(arguments: list[str] | None = None) -> int:
    """Append the rows of a run folder; 0."""
    parser = harness.parser(NAME, __doc__)
    parser.add_argument("run", type=Path, help="its folder")
    options = parser.parse_args(arguments)
    summary = json.loads((options.run / "summary.json").read_text())
    config = json.loads((options.run / "config.json").read_text())
    recipe, device = Recipe.from_dict(config["recipe"]), torch.device(config["device"])
    dtype = "bfloat16" if uses_bfloat16(recipe, device) else "float32"
    shapes = {**harness.sizes(recipe), "steps": recipe.steps, "seed": config["seed"]}
    measured = [
        (provider, "linear_probe", "%", 100 * summary[key]) for provider, key in ACCURACIES.items()
    ]
    measured += [
        (PRETRAINED, "training_time", "ms", 1e3 * summary["train_seconds"]),
        (PRETRAINED, "peak_memory", "bytes", summary["peak_memory_bytes"]),
    ]
    for provider, metric, unit, value in measured:
        condition = harness.Condition(NAME, recipe.name, provider, "run", shapes, dtype)
        harness.record(options.out, condition, metric, unit, [value], device.type, clock=WALL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
