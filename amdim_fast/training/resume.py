"""Resuming a run: its last checkpoint is read, compared with what is given now, and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from amdim_fast.checkpoints.formats import CheckpointError, stated_class_names
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.devices import find_device
from amdim_fast.files import remove_temporaries
from amdim_fast.training.checkpoints import LAST, RunCheckpoints
from amdim_fast.training.log import read_config, read_left_out
from amdim_fast.training.randomness import restore_random_states
from amdim_fast.training.recipes import Recipe
from amdim_fast.training.setup import PathLike, Setup, find_recipe
from amdim_fast.training.step import Training

# Of the recipe, what may be other than when the run began; the rate follows it from the next step.
LENGTH = ("epochs", "steps", "milestones")
_NEEDED = ("recipe", "step", "optimizer", "generators", "random", "seed", "score", "data", "device")
_KINDS = {
    **dict.fromkeys(
        ("model", "recipe", "optimizer", "generators", "random", "score", "data"), dict
    ),
    **{"step": int, "seed": int, "device": str},
}


def resumed_setup(
    folder: PathLike,
    *,
    name: str | None = None,
    recipe: Recipe | str | None = None,
    data_dir: PathLike | None = None,
    seed: int | None = None,
    device: str | None = None,
    skip_bad: bool = False,
    max_pixels: int | None = None,
    labels: bool = True,
    init_from: PathLike | None = None,
    log_every: int | None = None,
    tensorboard: bool = False,
    tensorboard_port: int | None = None,
) -> Setup:
    """The set-up of the run in ``folder``; arguments are ``pretrain``'s.

    Raises:
        ValueError: an argument differs from what the run began with, or its device is not here.
        FileNotFoundError: there is no run. CheckpointError: its checkpoint cannot be read.
    """
    if name is not None:
        raise ValueError(f"name is {name!r}, but a resumed run keeps its own; leave it out")
    if init_from is not None:
        raise ValueError(
            f"init_from is {str(init_from)!r}, but a resumed run has weights; leave it out"
        )
    folder = Path(folder)
    contents = read_run(folder)
    config = read_config(folder)
    begun = Recipe.from_dict(contents["recipe"])
    recipe = find_recipe(begun if recipe is None else recipe, log_every)
    pairs = recipe.differences(begun)
    has_other_length = bool([what for what in LENGTH if pairs.pop(what, None)])
    if seed is not None and seed != contents["seed"]:
        pairs["seed"] = (seed, contents["seed"])
    if pairs:
        said = "; ".join(
            f"{what} is {new!r}; it must be {old!r}" for what, (new, old) in pairs.items()
        )
        raise ValueError(
            f"{said}, as when the run {folder} began: leave it out to resume, or start a new run"
        )
    if has_other_length:
        _check_length(recipe, contents)
    left_out = read_left_out(folder)
    skips = contents.get("skip_bad", config.get("skip_bad", False))
    return Setup(
        recipe,
        data_dir=_own_data_dir(config) if data_dir is None else Path(data_dir),
        seed=contents["seed"],
        device=_own_device(folder, contents["device"]) if device is None else device,
        skip_bad=skip_bad or skips,
        max_pixels=contents.get("max_pixels") if max_pixels is None else max_pixels,
        labels=labels and contents.get("labels", True),
        init_from=contents.get("init_from"),
        left_out=left_out,
        looks=skip_bad or left_out is None,
        tensorboard=tensorboard,
        tensorboard_port=tensorboard_port,
        folder=folder,
        contents=contents,
    )


def _check_length(recipe: Recipe, contents: dict[str, Any]) -> None:
    total, done = recipe.total_steps(contents["data"]["images"]), contents["step"]
    if total < done:
        length = f"steps is {total}"
        if not recipe.steps:
            length = f"epochs is {recipe.epochs}, which is {total} steps"
        raise ValueError(f"{length}; it must be at least the {done} steps that the run has taken")


def _own_data_dir(config: dict[str, Any]) -> Path:
    """Where the run found its data; a relative folder that is not here is where the run began."""
    here = Path(config["data_dir"])
    there = Path(str(config.get("working_dir", "")), here)
    return here if here.exists() else there


def _own_device(folder: Path, device: str) -> str:
    try:
        find_device(device)
    except ValueError:
        raise ValueError(
            f"the run {folder} is on {device}, which is not here; name another with --device"
        ) from None
    return device


def read_run(folder: Path) -> dict[str, Any]:
    """The contents of a run's latest checkpoint.

    Raises:
        FileNotFoundError: the folder or the checkpoint is missing. CheckpointError: it cannot be
            read, or is not one of a run.
    """
    if not (folder / LAST).exists():
        what = f"has no {LAST}" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{folder} {what}, so there is no run to resume; start a new one")
    contents = read_checkpoint(folder / LAST)
    missing = [name for name in _NEEDED if name not in contents]
    if missing:
        raise CheckpointError(
            f"{folder / LAST} has no {', '.join(missing)}, so it cannot be resumed; start a new run"
        )
    for name, kind in _KINDS.items():
        if not isinstance(contents[name], kind):
            found = type(contents[name]).__name__
            raise CheckpointError(
                f"{folder / LAST} has a {found} under {name!r}; it must be {kind.__name__}"
            )
    stated_class_names(contents, folder / LAST)
    remove_temporaries(folder)
    return contents


def restore(contents: dict[str, Any], training: Training, checkpoints: RunCheckpoints) -> None:
    """Set model, optimizer and random generators to those of the checkpoint; empties ``contents``.

    On a device of another kind, 5x5 locations are drawn from a new generator, seeded with seed and
    step. If the run was killed after it wrote the latest checkpoint and before it gave that its
    other names, the best or a kept one, it gets them now.

    Raises:
        CheckpointError: a state is not one of the run's model, optimizer or generators.
    """
    path = checkpoints.folder / LAST
    try:
        _restore_states(contents, training)
        checkpoints.step, checkpoints.seconds = training.step, contents["seconds"]
        is_best = contents["score"]["step"] == contents["step"]
    except torch.OutOfMemoryError:
        raise
    # torch, NumPy and random raise any of these for a state of another shape or type.
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds a state that does not fit the run ({type(error).__name__}); go on from"
            " an earlier checkpoint, or start a new run"
        ) from error
    if training.ranks.is_first:
        checkpoints.name_latest(training.step, is_best=is_best)
    contents.clear()


def _restore_states(contents: dict[str, Any], training: Training) -> None:
    training.model.load_state_dict(contents["model"])
    if torch.device(contents["device"]).type != training.device.type:
        seed = int(np.random.SeedSequence((training.seed, contents["step"])).generate_state(1)[0])
        generator = torch.Generator(training.device).manual_seed(seed)
        contents["generators"]["locations"] = generator.get_state()
    training.load_state(contents)
    restore_random_states(contents["random"])
