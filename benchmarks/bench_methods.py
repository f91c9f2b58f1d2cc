"""What frozen encoders know of digits on photographs: AMDIM, SimCLR, supervised, untrained.

    python -m benchmarks.bench_methods    # about twenty minutes on two idle cores

The encoder of the recipe digits in float32. With one seed, all methods begin with the same weights
and get the same images, batches and views. Two runs at a time, each in a process with one thread.
The linear probe is on photographs that no training saw; its time is not training time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amdim_fast.data.datasets import ImageData
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.data.loader import training_batches
from amdim_fast.evaluation.linear_probe import probe_encoder, probe_pixels
from amdim_fast.model.backbone import AnyEncoder
from amdim_fast.model.encoder import encode_views
from amdim_fast.training.randomness import seed_everything
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.step import Training, build_model
from benchmarks import harness
from benchmarks.composites import load_composites
from benchmarks.plain_losses import page_loss

NAME = "methods"
AMDIM, SIMCLR, SUPERVISED = "AMDIM", "SimCLR", "supervised"
RANDOM, PIXELS = "random weights", "raw pixels"
TRAINED = (AMDIM, SIMCLR, SUPERVISED)
METHODS = (*TRAINED, RANDOM, PIXELS)
SEEDS = (0, 1, 2)
RECIPE = replace(RECIPES["digits"], precision="float32", steps=300)
# Of SimCLR, arXiv:2002.05709; of 0.1, 0.2 and 0.5, the temperature best with seed 3 at 150 steps.
PROJECTION, TAU = 128, 0.1
AT_ONCE = 2
simclr_loss = page_loss("simclr_loss")


def composites(seed: int) -> ImageData:
    """4,000 images to train and 1,000 to test, with the digits' classes."""
    train, test = (TensorImages(part.images, part.labels) for part in load_composites(seed))
    return ImageData(train, train, test, tuple("0123456789"))


def make_head(method: str, width: int, classes: int) -> nn.Module:
    """What lies between r1 [B, D] and the loss: SimCLR's projection, or classes."""
    if method == SUPERVISED:
        return nn.Linear(width, classes)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION))


def loss_of(method: str, first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """The loss of both views behind the head: NT-Xent, or cross entropy of all."""
    if method == SUPERVISED:
        return F.cross_entropy(torch.cat([first, second]), labels.repeat(2))
    return simclr_loss(first, second, TAU)


def update(training: Training, method: str, head: nn.Module, views: Tensor, labels: Tensor) -> None:
    """A step of ``Training`` with another loss, on r1: the same optimizer and schedule."""
    first, second = (
        head(output.r1.flatten(1)) for output in encode_views(training.model.encoder, views)
    )
    for options in training.optimizer.param_groups:
        options["lr"] = training.rate(training.step)
    training.optimizer.zero_grad(set_to_none=True)
    loss_of(method, first, second, labels).backward()
    training.optimizer.step()
    training.step += 1


def train(method: str, seed: int, data: ImageData, recipe: Recipe) -> tuple[AnyEncoder, float]:
    """The encoder after all steps, of random weights none, and the seconds that they took."""
    seed_everything(seed)
    training = Training(build_model(recipe, None), recipe, len(data.train), seed)
    step: Callable[[Tensor, Tensor], object] = training.update
    if method in (SIMCLR, SUPERVISED):
        head = make_head(method, recipe.n_rkhs, len(data.classes))
        training.optimizer.add_param_group({"params": list(head.parameters())})
        step = partial(update, training, method, head)
    steps = 0 if method == RANDOM else training.total_steps
    started = time.perf_counter()
    with training_batches(data.train, recipe.batch_size, seed=seed) as loader:
        while training.step < steps:
            batch = next(loader)
            step(training.views(batch), batch.labels)
    return training.model.encoder, time.perf_counter() - started


def run(method: str, seed: int, recipe: Recipe = RECIPE) -> None:
    """Train and probe, and print a JSON line: accuracy in percent, seconds of training."""
    torch.set_num_threads(1)
    data, seconds = composites(seed), 0.0
    if method == PIXELS:
        accuracy = probe_pixels(data, recipe.view_policy)
    else:
        encoder, seconds = train(method, seed, data, recipe)
        accuracy = probe_encoder(encoder, data, recipe.view_policy)
    print(json.dumps({"accuracy": 100 * accuracy, "seconds": seconds}), flush=True)


def run_apart(seed: int, method: str) -> dict[str, float]:
    """What ``run`` prints, in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.bench_{NAME}"]
    command += ["--seed", str(seed), "--run", method]
    finished = subprocess.run(command, cwd=harness.ROOT, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(finished.stdout)
    return found


def measure(out: Path) -> None:
    """Every method, two at a time, seed by seed; appends the rows of a seed once it is done."""
    torch.set_num_threads(1)  # as the processes have; rows name it with the device
    shapes = {**harness.sizes(RECIPE), "steps": RECIPE.steps}
    for seed in SEEDS:
        other_work = harness.OtherWork()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = list(pool.map(partial(run_apart, seed), METHODS))
        note = other_work.note()
        for method, found in zip(METHODS, results, strict=True):
            provider = f"{method}, seed {seed}"
            condition = harness.Condition(NAME, "composites", provider, "train", shapes, "float32")
            harness.record(out, condition, "linear_probe", "%", [found["accuracy"]])
            if method in TRAINED:
                harness.record(out, condition, "time", "ms", [1e3 * found["seconds"]], note=note)


def main(arguments: list[str] | None = None) -> int:
    parser = harness.parser(NAME, __doc__)
    parser.add_argument("--run", choices=METHODS, help="of a child process")
    parser.add_argument("--seed", type=int, help="of a child process")
    options = parser.parse_args(arguments)
    if options.run:
        run(options.run, options.seed)
    else:
        measure(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
