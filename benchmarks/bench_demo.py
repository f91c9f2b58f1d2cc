"""Rows of one finished run of ``make demo``: probe accuracy, seconds, memory.

python -m benchmarks.bench_demo runs/NAME/run    # on the machine where it ran
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from amdim_fast.training.recipes import Recipe
from amdim_fast.training.step import uses_bfloat16
from benchmarks import harness

NAME = "demo"
ACCURACIES = {
    "raw pixels": "accuracy_raw_pixels",
    "encoder at random weights": "accuracy_random_weights",
    "encoder after pre-training": "accuracy_pretrained",
}
PRETRAINED = "encoder after pre-training"


def main(arguments: list[str] | None = None) -> int:
    """Append the rows of a run folder; 0."""
    parser = argparse.ArgumentParser(description="Append the rows of a finished run of make demo.")
    parser.add_argument("run", type=Path, help="its folder")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / f"{NAME}.jsonl")
    options = parser.parse_args(arguments)
    summary = json.loads((options.run / "summary.json").read_text())
    config = json.loads((options.run / "config.json").read_text())
    recipe = config["recipe"]
    shapes = {"B": recipe["batch_size"], "D": recipe["n_rkhs"], "seed": config["seed"]}
    bfloat16 = uses_bfloat16(Recipe.from_dict(recipe), torch.device(config["device"]))
    dtype = "bfloat16" if bfloat16 else "float32"
    shapes |= {key: recipe[key] for key in ("ndf", "depth", "steps")}
    measured = [
        (provider, "linear_probe", "%", 100 * summary[key]) for provider, key in ACCURACIES.items()
    ]
    measured += [
        (PRETRAINED, "training_time", "ms", 1e3 * summary["train_seconds"]),
        (PRETRAINED, "peak_memory", "bytes", summary["peak_memory_bytes"]),
    ]
    for provider, metric, unit, value in measured:
        condition = harness.Condition(NAME, recipe["name"], provider, "run", shapes, dtype)
        row = harness.make_row(
            condition, metric, unit, [value], device=harness.device_name(config["device"])
        )
        harness.append_row(row, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
