"""What a run begins or goes on with, checked before work starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amdim_fast.data.datasets import ImageData
from amdim_fast.devices import find_device
from amdim_fast.distributed.ranks import Ranks
from amdim_fast.training.checkpoints import read_run
from amdim_fast.training.log import read_config
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.views.params import POLICIES

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Setup:
    """What a run begins or goes on with; ``contents`` are its checkpoint's, empty for a new one."""

    recipe: Recipe
    data_dir: Path
    seed: int
    device: str
    skip_bad: bool
    folder: Path | None
    contents: dict[str, Any]


def new_setup(
    recipe: Recipe | str | None,
    data_dir: PathLike | None,
    seed: int | None,
    device: str | None,
    skip_bad: bool,
) -> Setup:
    """Of a run that begins."""
    if not isinstance(recipe, Recipe):
        recipe = "digits" if recipe is None else recipe
        if recipe not in RECIPES:
            raise ValueError(f"recipe is {recipe!r}; it must be one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    folder = Path("data" if data_dir is None else data_dir)
    return Setup(recipe, folder, seed or 0, device or "cpu", skip_bad, None, {})


def resumed_setup(
    folder: Path,
    recipe: Recipe | str | None,
    data_dir: PathLike | None,
    seed: int | None,
    device: str | None,
    skip_bad: bool,
) -> Setup:
    """Of a run that goes on; what is None is as it was."""
    contents = read_run(folder)
    config = read_config(folder)
    begun = Recipe.from_dict(contents["recipe"])
    if isinstance(recipe, str):
        recipe = new_setup(recipe, None, None, None, False).recipe
    recipe = recipe or begun
    pairs = recipe.differences(begun)
    for name, given in (("seed", seed), ("device", device)):
        if given is not None and given != contents[name]:
            pairs[name] = (given, contents[name])
    if pairs:
        said = "; ".join(f"{name} is {new!r}, not {old!r}" for name, (new, old) in pairs.items())
        raise ValueError(
            f"{said} as when the run {folder} began; leave that out to go on with it, or start a"
            " new run"
        )
    return Setup(
        recipe,
        Path(config["data_dir"] if data_dir is None else data_dir),
        contents["seed"],
        contents["device"],
        skip_bad or config["skip_bad"],
        folder,
        contents,
    )


def check_setup(setup: Setup, ranks: Ranks) -> None:
    """Raise ValueError for what can be said before data are read."""
    policy, device = setup.recipe.policy, setup.device
    if policy not in POLICIES:
        raise ValueError(f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
    find_device(device)
    ranks.device(device)
    ranks.check_batch(setup.recipe.batch_size)
    setup.recipe.check_micro_batch(setup.recipe.batch_size // ranks.world_size)


def check_data(setup: Setup, data: ImageData) -> None:
    """Raise ValueError unless the data set is one for this run."""
    recipe, images = setup.recipe, len(data.train)
    if recipe.baselines and (data.train_labeled is None or data.test is None):
        raise ValueError(
            f"baselines is on, but the data set {recipe.data!r} has no labels or no test images"
        )
    if recipe.batch_size > images:
        raise ValueError(
            f"batch_size is {recipe.batch_size}; the data set {recipe.data!r} has only {images}"
            " training images"
        )
    before, now = setup.contents.get("data"), data_facts(data)
    if before is not None and before != now:
        raise ValueError(
            f"the data set has {now['images']} training images of {now['classes']} classes, but"
            f" had {before['images']} of {before['classes']} when the run began; give it the same"
            " with --data-dir"
        )


def data_facts(data: ImageData) -> dict[str, int]:
    """By which a resumed run knows its data again."""
    labeled = bool((data.train.labels >= 0).any())
    return {"images": len(data.train), "classes": len(data.classes) if labeled else 0}
