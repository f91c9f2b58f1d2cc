"""What a run begins with: recipe, data, seed and device, checked before work starts."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from amdim_fast.checks import LARGEST_SEED, whole_number
from amdim_fast.data.classes import with_labels_of
from amdim_fast.data.datasets import ImageData, LeftOut, load_data, without_labels
from amdim_fast.data.decoding import BadImage, OtherChannels, check_sides
from amdim_fast.data.image_sets import FileImages, StoredImages
from amdim_fast.devices import find_device
from amdim_fast.distributed.ranks import Ranks
from amdim_fast.model.encoder import SIZES
from amdim_fast.model.networks import check_name
from amdim_fast.training.graph import check_graph
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.tensorboard import check_tensorboard
from amdim_fast.views import compiled

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Setup:
    """What a run begins with; a resumed one also has its folder and its checkpoint's contents.

    Attributes:
        left_out: files that the run has left out or could not read, as it wrote them down; None if
            it wrote nothing.
        labels: whether the labels of the data set, if it has any, train probes.
        max_pixels: as in ``load_data``.
        init_from: file of the weights that a new run begins with; the resumed run's.
        looks: whether ``skip_bad`` decodes every file, rather than leave out ``left_out``.
    """

    recipe: Recipe
    data_dir: Path
    seed: int
    device: str
    skip_bad: bool
    tensorboard: bool
    tensorboard_port: int | None
    folder: Path | None = None
    contents: dict[str, Any] = field(default_factory=dict)
    left_out: LeftOut | None = None
    looks: bool = True
    labels: bool = True
    max_pixels: int | None = None
    init_from: str | None = None


def new_setup(
    *,
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
    """The set-up of a new run; arguments are ``pretrain``'s."""
    return Setup(
        find_recipe("digits" if recipe is None else recipe, log_every),
        data_dir=Path("data" if data_dir is None else data_dir),
        seed=seed or 0,
        device=device or str(find_device()),
        skip_bad=skip_bad,
        max_pixels=max_pixels,
        labels=labels,
        init_from=None if init_from is None else str(init_from),
        tensorboard=tensorboard,
        tensorboard_port=tensorboard_port,
    )


def find_recipe(recipe: Recipe | str, log_every: int | None = None) -> Recipe:
    """The recipe, given or by name, with ``log_every`` in place of its own."""
    if not isinstance(recipe, Recipe):
        if recipe not in RECIPES:
            raise ValueError(f"recipe is {recipe!r}; it must be one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    return recipe if log_every is None else replace(recipe, log_every=log_every)


def check_setup(setup: Setup, ranks: Ranks) -> None:
    """Check what can be checked before data are read.

    Raises:
        ValueError: a value is out of range. RuntimeError: the library of views is not built. Also
            what ``check_name`` of the backbone and ``check_tensorboard`` raise.
    """
    recipe, device = setup.recipe, setup.device
    size = recipe.view_policy.size
    if recipe.backbone is None and size not in SIZES:
        raise ValueError(
            f"size is {size}; the paper's encoder takes {', '.join(map(str, SIZES))}: give one of"
            " them, or a backbone, such as resnet50"
        )
    if setup.recipe.backbone is not None:
        check_name(setup.recipe.backbone)
    whole_number("seed", setup.seed, least=0, most=LARGEST_SEED)
    check_graph(setup.recipe.cuda_graph, find_device(device), ranks.world_size)
    compiled.require("cpu")
    ranks.device(device)
    ranks.check_batch(setup.recipe.batch_size)
    setup.recipe.check_micro_batch(setup.recipe.batch_size // ranks.world_size)
    if ranks.is_first and (setup.tensorboard or setup.tensorboard_port is not None):
        check_tensorboard(setup.tensorboard_port)


def load_for_run(
    setup: Setup,
    ranks: Ranks,
    *,
    download: bool,
    workers: int | None = None,
    progress: bool = True,
) -> ImageData:
    """The data set, the same on every process.

    With several processes, rank 0 downloads first, then one process of each other machine.

    Raises:
        ValueError: on every process, if the data set does not suit this run.
    """
    alone = ranks.world_size == 1
    for is_turn in (ranks.is_first, ranks.local_rank == 0) if download and not alone else ():
        with ranks.together():
            if is_turn:
                load_data(setup.recipe.data, setup.data_dir, download=True)
    with ranks.together():
        data = load_data(
            setup.recipe.data,
            setup.data_dir,
            download=download and alone,
            skip_bad=setup.skip_bad,
            workers=workers,
            left_out=None if setup.looks else setup.left_out,
            max_pixels=setup.max_pixels,
            least_side=setup.recipe.view_policy.least_side,
            channels=setup.recipe.channels,
            progress=progress and ranks.is_first,
        )
        if not setup.labels:
            data = without_labels(data)
        check_data(setup, data)
        if names := setup.contents.get("class_names"):
            advice = "call the class folders what they were, or give the same data set"
            data = with_labels_of(data, names, "the run", f"{advice} with --data-dir")
    facts = data_facts(data) | {"step": setup.contents.get("step")}
    ranks.check_equal(
        facts | {f"class {label}": repr(name) for label, name in enumerate(data.classes)}
    )
    return data


def check_data(setup: Setup, data: ImageData) -> None:
    """Raise ValueError unless the data set suits this run."""
    recipe, images = setup.recipe, len(data.train)
    if recipe.baselines and (data.train_labeled is None or data.test is None):
        raise ValueError(
            f"baselines is on, but the data set {recipe.data!r} has no labels or no test images;"
            " turn it off"
        )
    if recipe.batch_size > images:
        raise ValueError(
            f"batch_size is {recipe.batch_size}; it must be at most {images}, the number of"
            f" training images of {recipe.data!r}"
        )
    if isinstance(data.train, StoredImages):
        least = recipe.view_policy.least_side
        shapes = data.train.shapes(torch.arange(images))
        for index in (shapes.amin(1) < least).nonzero()[:1].flatten().tolist():
            height, width = shapes[index].tolist()
            check_sides(data.train.name(index), width, height, least)
    _check_first_image(data)
    before, now = setup.contents.get("data"), data_facts(data)
    if before is not None and not (
        before["classes"] == now["classes"] and _has_as_many(setup, data, before["images"])
    ):
        raise ValueError(
            f"the data set has {now['images']} training images of {now['classes']} classes, but"
            f" it had {before['images']} of {before['classes']} when the run began; give the same"
            " data set with --data-dir"
        )


def _check_first_image(data: ImageData) -> None:
    """Raise ValueError if it has other channels than are asked for; bad ones are told later."""
    with contextlib.suppress(BadImage):
        try:
            data.train.batch(torch.tensor([0]))
        except OtherChannels as error:
            raise ValueError(f"{error}, or change --channels") from None


def _has_as_many(setup: Setup, data: ImageData, images: int) -> bool:
    """Whether a resumed run's data can be those it had ``images`` of, some left out.

    Files may have been left out, repaired or removed since, and have other names in a store.
    """
    left_out, now = setup.contents.get("left_out", 0), len(data.train)
    missing = len(left_out_of(setup, data)["train"])
    return now in (images, images + left_out) or now + missing == images + left_out


def left_out_of(setup: Setup, data: ImageData) -> dict[str, dict[str, str]]:
    """Files that the run has left out or could not read and that are not in its data now.

    Returns:
        split -> path relative to the root -> sentence.
    """
    found: dict[str, dict[str, str]] = {}
    for split, images in (("train", data.train), ("test", data.test)):
        known = {**(setup.left_out or {}).get(split, {}), **data.left_out.get(split, {})}
        missing = images.missing(known) if isinstance(images, FileImages) else ()
        found[split] = {name: known[name] for name in known if name in missing}
    return found


def data_facts(data: ImageData) -> dict[str, int]:
    """The facts by which a resumed run recognizes its data set."""
    labeled = bool((data.train.labels >= 0).any())
    return {"images": len(data.train), "classes": len(data.classes) if labeled else 0}
