"""The largest batch that trains imagenet128 on a GPU, in bfloat16, and the loss's share of a step.

Four providers on synthetic views: the reference loss, ours, ours with checkpointed blocks and ours
with the gradient cache. A batch fits if a whole step, optimiser included, does.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from amdim_fast.model.encoder import EncoderOutput
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.step import Training, build_model
from amdim_fast.views.params import POLICIES
from benchmarks import harness
from benchmarks.reference_loss import use_reference

NAME, LARGEST, RECIPE_BATCH = "large_batch", "cuda-imagenet128", "cuda-imagenet128-recipe"
MICRO_BATCH = 256
REFERENCE = "reference loss"
PROVIDERS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "amdim_fast": {},
    "amdim_fast, blocks checkpointed": {"checkpoint_blocks": True},
    f"amdim_fast, micro-batches of {MICRO_BATCH}": {"micro_batch": MICRO_BATCH},
}
START = 128
CLASSES = 10
SECONDS, CACHE_SECONDS = 50.0, 280.0
PRECISION = 16  # the search ends when the next step would be below a 16th of the batch


@dataclass(frozen=True)
class Found:
    """The largest batch tried that fits, its milliseconds, and why no larger one was taken."""

    images: int
    milliseconds: float
    note: str


def search(
    attempt: Callable[[int], float | None],
    start: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Double, then bisect, until out of memory or of time.

    Args:
        attempt: images -> milliseconds of a step, or None if it does not fit.
        start: first batch; 0 is found if it does not fit.
        seconds: no attempt begins that would end later, if its time grows as the batch squared.
        clock: seconds.
    """
    began = clock()
    found, milliseconds, too_many = 0, 0.0, 0
    while True:
        images = (found + too_many) // 2 if too_many else max(start, 2 * found)
        if found and images - found < max(1, found // PRECISION):
            return Found(found, milliseconds, "")
        if found and clock() - began + 1e-3 * milliseconds * (images / found) ** 2 > seconds:
            return Found(found, milliseconds, "at least: the search was out of time")
        taken = attempt(images)
        if taken is not None:
            found, milliseconds = images, taken
        elif found:
            too_many = images
        else:
            return Found(0, 0.0, f"{start} did not fit")


def make_training(recipe: Recipe, provider: str) -> Training:
    """The recipe on the GPU, with the provider's options."""
    recipe = replace(recipe, precision="bfloat16", **PROVIDERS[provider])
    training = Training(build_model(recipe, CLASSES).cuda(), recipe, 10**6, seed=0)
    if provider == REFERENCE:
        use_reference(training)
    return training


def step(training: Training, images: int, measure: harness.Stopwatch) -> float:
    """Milliseconds of a step on noise."""
    side = POLICIES[training.recipe.policy].size
    device, dtype = training.device, torch.bfloat16
    views = torch.randn(2, images, side, side, 3, device=device, dtype=dtype)
    labels = torch.arange(images, device=device) % CLASSES
    return measure(lambda: training.update(views.permute(0, 1, 4, 2, 3), labels))


def loss_alone(training: Training, images: int, measure: harness.Stopwatch) -> float:
    """Milliseconds of the loss, forward and backward, on features that are there already."""
    maps = [
        torch.randn(
            (images, side, side, training.recipe.n_rkhs),
            device=training.device,
            dtype=torch.bfloat16,
        )
        .permute(0, 3, 1, 2)
        .requires_grad_()
        for side in (1, 5, 7, 1, 5, 7)
    ]

    first, second = (torch.randint(25, (images,), device=training.device) for _ in range(2))

    def call() -> object:
        with torch.autocast(training.device.type, torch.bfloat16):
            features = EncoderOutput(*maps[:3]), EncoderOutput(*maps[3:])
            loss = training.model.objective(*features, locations=(first, second)).loss
        return torch.autograd.grad(loss, maps)

    return measure(call)


def _released() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def measure(out: Path) -> int:
    """Append the rows of every provider; 1 without a GPU or if not even the first batch fits."""
    if not torch.cuda.is_available():
        print("torch finds no CUDA device; nothing is measured", file=sys.stderr)
        return 1
    return max([_measure_provider(provider, out) for provider in PROVIDERS])


def _measure_provider(provider: str, out: Path) -> int:
    recipe = RECIPES["imagenet128"]
    stopwatch = harness.stopwatch("cuda")
    _released()
    training = make_training(recipe, provider)
    for _ in range(2):
        step(training, START, stopwatch)

    def attempt(images: int) -> float | None:
        _released()
        try:
            return step(training, images, stopwatch)
        except torch.OutOfMemoryError:
            print(f"  {provider}: {images} images do not fit", flush=True)
        training.optimizer.zero_grad(set_to_none=True)
        return None

    seconds = CACHE_SECONDS if "micro_batch" in PROVIDERS[provider] else SECONDS
    found = search(attempt, START, seconds)
    values = [(LARGEST, "largest_batch", "images", float(found.images), found.note)]
    for case, images in ((LARGEST, found.images), (RECIPE_BATCH, recipe.batch_size)):
        if not 0 < images <= found.images:
            continue
        training.optimizer.zero_grad(set_to_none=True)
        _released()
        taken = found.milliseconds
        if case == RECIPE_BATCH:
            step(training, images, stopwatch)
            taken = step(training, images, stopwatch)
        loss_alone(training, START, stopwatch)
        share = 100 * loss_alone(training, images, stopwatch) / taken
        values += [(case, "time", "ms", taken, ""), (case, "loss_share", "%", share, "")]
    shapes = {"D": recipe.n_rkhs, "ndf": recipe.ndf, "depth": recipe.depth}
    for case, metric, unit, value, note in values:
        extra = {"B": recipe.batch_size} if case == RECIPE_BATCH else {}
        condition = harness.Condition(NAME, case, provider, "step", extra | shapes, "bfloat16")
        device = harness.device_name("cuda")
        row = harness.make_row(condition, metric, unit, [value], device=device, note=note)
        harness.append_row(row, out)
        print(f"  {case} {provider}: {metric} {value:,.4g} {unit} {note}", flush=True)
    return int(not found.images)
