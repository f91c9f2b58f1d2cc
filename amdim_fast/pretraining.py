"""Pre-training: from a recipe to a checkpoint, with a linear probe before and after."""

from __future__ import annotations

import math
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import amdim_fast
from amdim_fast.augmentation import TwoViews
from amdim_fast.checkpoint import save_checkpoint
from amdim_fast.data import load_data
from amdim_fast.evaluation import probe_encoder, probe_pixels
from amdim_fast.image_sets import ImageSet
from amdim_fast.model import AMDIM, AMDIMOutput
from amdim_fast.ops.plan import last_plan
from amdim_fast.recipes import RECIPES, Recipe
from amdim_fast.runlog import RunLog
from amdim_fast.views import POLICIES

LOSS_PARTS = ("loss_1t5", "loss_1t7", "loss_5t5", "lgt_reg")


def pretrain(
    recipe: Recipe | str = "digits",
    *,
    name: str | None = None,
    runs_dir: str | os.PathLike[str] = "runs",
    data_dir: str | os.PathLike[str] = "data",
    download: bool = False,
    skip_bad: bool = False,
    seed: int = 0,
    device: str = "cpu",
    log_every: int = 10,
    progress: bool = True,
) -> dict[str, Any]:
    """Pre-train an encoder and probe it; everything is kept in ``runs_dir / name``.

    The folder holds ``config.json``, ``log.jsonl``, ``checkpoint.pt`` (for ``load_checkpoint``),
    ``curves.png`` and ``summary.json``.

    Args:
        recipe: a Recipe, or the name of one in ``RECIPES``.
        name: of the run; the recipe's name and the time by default.
        runs_dir: folder of runs; created if missing.
        data_dir: folder of the data set; this, ``download`` and ``skip_bad`` are ``load_data``'s.
        download: whether to fetch what is missing there.
        skip_bad: whether to leave out image files that cannot be decoded.
        seed: of weights, batches, views and 5x5 locations.
        device: where the encoder and the loss run.
        log_every: steps between records in the log; losses are read from the device only then.
        progress: whether to show a bar with loss and images/s.

    Returns:
        The summary: accuracies of the linear probe on held-out images (raw pixels, random weights,
        pre-trained), seconds, images/s, peak memory in bytes, the loss's plan, and the folder.

    Raises:
        ValueError: an argument is out of range. FileExistsError: the run exists.
        FloatingPointError: the loss is not finite; nothing is saved from then on.

    Deterministic for a seed, device, library versions and number of threads.
    """
    recipe = _find(recipe)
    if recipe.policy not in POLICIES:
        raise ValueError(f"policy is {recipe.policy!r}; it must be one of {', '.join(POLICIES)}")
    if log_every < 1:
        raise ValueError(f"log_every is {log_every}; it must be 1 or more")
    policy = POLICIES[recipe.policy]
    _check_device(device)
    data = load_data(recipe.data, data_dir, download=download, skip_bad=skip_bad)
    if data.train_labeled is None or data.test is None:
        raise ValueError(f"the data set {recipe.data!r} has no labels or no test images to probe")
    if recipe.batch_size > len(data.train):
        raise ValueError(
            f"batch_size is {recipe.batch_size}; the data set {recipe.data!r} has only"
            f" {len(data.train)} training images"
        )
    torch.manual_seed(seed)
    model = AMDIM(
        policy.size,
        recipe.ndf,
        recipe.n_rkhs,
        recipe.depth,
        recipe.use_bn,
        tclip=recipe.tclip,
        reg_weight=recipe.reg_weight,
    ).to(device)
    started = datetime.now(timezone.utc)
    folder = Path(runs_dir) / (name or f"{recipe.name}-{started:%Y%m%d-%H%M%S}")
    config = {
        "recipe": asdict(recipe),
        "seed": seed,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {
            "amdim_fast": amdim_fast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "started": started.isoformat(timespec="seconds"),
    }
    with RunLog(folder, config) as log:
        pixels = probe_pixels(data)
        untrained = probe_encoder(model.encoder, data, policy)
        seconds = _train(model, recipe, data.train, seed, log, log_every, progress)
        save_checkpoint(folder / "checkpoint.pt", model, recipe=asdict(recipe), step=recipe.steps)
        plan = last_plan()
        summary = {
            "accuracy_raw_pixels": pixels,
            "accuracy_random_weights": untrained,
            "accuracy_pretrained": probe_encoder(model.encoder, data, policy),
            "train_seconds": seconds,
            "images_per_second": recipe.steps * recipe.batch_size / seconds,
            "peak_memory_bytes": _peak_memory(device),
            "loss_backend": None if plan is None else f"{plan.backend} ({plan.products})",
            "folder": str(folder),
        }
        log.finish(summary)
    return summary


def _find(recipe: Recipe | str) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; it must be one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(
            f"device is {device!r}; it must be one of torch's, such as cpu or cuda"
        ) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no CUDA device here; use cpu")


def _batches(images: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless indices [batch_size], each epoch a new permutation; an incomplete batch is left."""
    while True:
        for batch in torch.randperm(images, generator=generator).split(batch_size):
            if len(batch) == batch_size:
                yield batch


def _train(
    model: AMDIM,
    recipe: Recipe,
    images: ImageSet,
    seed: int,
    log: RunLog,
    log_every: int,
    progress: bool,
) -> float:
    """Run all steps; returns their seconds."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.Adam(
        parameters,
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.epsilon,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.rate_factor)
    generator = torch.Generator().manual_seed(seed)
    location_generator = torch.Generator(device).manual_seed(seed)
    two_views = TwoViews(recipe.policy, channels_last=True)
    batches = _batches(len(images), recipe.batch_size, generator)
    model.train()
    started = time.perf_counter()
    with tqdm(total=recipe.steps, unit="step", disable=not progress, file=sys.stderr) as bar:
        for step in range(1, recipe.steps + 1):
            index = next(batches)
            views = two_views(images.batch(index), generator=generator, sample_index=index)
            x1, x2 = views.to(device)
            output: AMDIMOutput = model(x1, x2, generator=location_generator)
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            if step % log_every == 0 or step in (1, recipe.steps):
                elapsed = time.perf_counter() - started
                _record(log, bar, output, step, elapsed, recipe.batch_size)
    return time.perf_counter() - started


def _record(
    log: RunLog, bar: tqdm[Any], output: AMDIMOutput, step: int, elapsed: float, batch_size: int
) -> None:
    losses = torch.stack([getattr(output, part).detach() for part in LOSS_PARTS]).tolist()
    record = dict(zip(LOSS_PARTS, losses, strict=True))
    for part, value in record.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{part} is {value} at step {step}; lower the learning rate or raise reg_weight"
            )
    rate = step * batch_size / elapsed
    log.write({"step": step, **record, "images_per_second": rate, "seconds": elapsed})
    bar.set_postfix({"loss": f"{sum(losses):.3f}", "images/s": f"{rate:.0f}"})


def _peak_memory(device: str) -> int:
    """Bytes: of the device's allocator on CUDA, else the process's resident peak."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
