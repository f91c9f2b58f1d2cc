"""The largest batch that trains imagenet128 on a GPU, in bfloat16, and the loss's share of a step.

Four providers on synthetic views: the reference loss, ours, ours with checkpointed blocks and ours
with the gradient cache. A batch fits if a whole step, optimizer included, does.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch

from amdim_fast.bench.inputs import make_inputs
from amdim_fast.bench.measure import Stopwatch, stopwatch
from amdim_fast.model.encoder import EncoderOutput
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.step import Training, build_model
from amdim_fast.views.params import POLICIES
from benchmarks import harness
from benchmarks.reference_loss import use_reference

LARGEST, RECIPE_BATCH = "cuda-imagenet128", "cuda-imagenet128-recipe"
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


class Found(NamedTuple):
    """The largest batch tried that fits, its milliseconds, and why no larger one was tried."""

    images: int
    milliseconds: float
    note: str = ""


def search(
    attempt: Callable[[int], float | None], seconds: float, clock: Callable[[], float] = monotonic
) -> Found:
    """From START, double, then bisect, until out of memory or of time.

    ``attempt`` maps images to the milliseconds of a step, or to None if they do not fit. No
    attempt begins that would end after ``seconds`` if its time grows as the batch squared.
    """
    began = clock()
    found, too_many = Found(0, 0.0, f"{START} did not fit"), 0
    while True:
        images = (found.images + too_many) // 2 if too_many else max(START, 2 * found.images)
        if images - found.images < max(1, found.images // PRECISION):
            return found
        growth = images / max(1, found.images)
        if clock() - began + 1e-3 * found.milliseconds * growth**2 > seconds:
            return found._replace(note="at least: the search was out of time")
        taken = attempt(images)
        if taken is not None:
            found = Found(images, taken)
        elif found.images:
            too_many = images
        else:
            return found


def make_training(recipe: Recipe, provider: str) -> Training:
    """The recipe on the GPU, with the provider's options."""
    recipe = replace(recipe, precision="bfloat16", cuda_graph=False, **PROVIDERS[provider])
    training = Training(build_model(recipe, CLASSES).cuda(), recipe, 10**6, seed=0)
    if provider == REFERENCE:
        use_reference(training)
    return training


def step(training: Training, images: int, measure: Stopwatch) -> float:
    """Milliseconds of a step on noise."""
    side = POLICIES[training.recipe.policy].size
    device, dtype = training.device, torch.bfloat16
    views = torch.randn(2, images, side, side, 3, device=device, dtype=dtype)
    labels = torch.arange(images, device=device) % CLASSES
    return measure(lambda: training.update(views.permute(0, 1, 4, 2, 3), labels))


def loss_alone(training: Training, images: int, measure: Stopwatch) -> float:
    """Milliseconds of the loss, forward and backward, on features that are there already."""
    inputs = make_inputs(images, training.recipe.n_rkhs, training.device, torch.bfloat16)
    features = EncoderOutput(*inputs.maps[:3]), EncoderOutput(*inputs.maps[3:])

    def call() -> object:
        with torch.autocast(training.device.type, torch.bfloat16):
            loss = training.model.objective(*features, locations=inputs.locations).loss
        return torch.autograd.grad(loss, inputs.maps)

    return measure(call)


def _release(training: Training) -> None:
    training.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()


def measure_provider(name: str, provider: str, out: Path) -> int:
    """Append the rows of one provider; 1 if not even the first batch fits."""
    recipe = RECIPES["imagenet128"]
    measure = stopwatch("cuda")
    training = make_training(recipe, provider)
    for _ in range(2):
        step(training, START, measure)

    def attempt(images: int) -> float | None:
        _release(training)
        try:
            return step(training, images, measure)
        except torch.OutOfMemoryError:
            print(f"  {provider}: {images} images do not fit", flush=True)
        return None

    def record(case: str, metric: str, unit: str, value: float, note: str = "") -> None:
        sizes = harness.sizes(recipe)
        if case == LARGEST:
            del sizes["B"]
        condition = harness.Condition(name, case, provider, "step", sizes, "bfloat16")
        more = {"note": note, "clock": harness.WALL}
        harness.record(out, condition, metric, unit, [value], "cuda", **more)

    seconds = CACHE_SECONDS if "micro_batch" in PROVIDERS[provider] else SECONDS
    found = search(attempt, seconds)
    record(LARGEST, "largest_batch", "images", float(found.images), found.note)
    for case, images in ((LARGEST, found.images), (RECIPE_BATCH, recipe.batch_size)):
        if not 0 < images <= found.images:
            continue
        _release(training)
        taken = found.milliseconds
        if case == RECIPE_BATCH:
            step(training, images, measure)
            taken = step(training, images, measure)
        loss_alone(training, START, measure)
        record(case, "time", "ms", taken)
        record(case, "loss_share", "%", 100 * loss_alone(training, images, measure) / taken)
    _release(training)
    return int(not found.images)
