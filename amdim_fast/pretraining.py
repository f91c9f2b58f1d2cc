"""Pre-training: from a recipe to a trained encoder, in one go or resumed."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import amdim_fast
from amdim_fast.data import ImageData, load_data
from amdim_fast.evaluation import probe_encoder, probe_pixels
from amdim_fast.meter import Meter
from amdim_fast.ops.plan import last_plan
from amdim_fast.randomness import algorithms, restore_random_states, seed_everything
from amdim_fast.recipes import RECIPES, Recipe
from amdim_fast.run_checkpoints import RunCheckpoints, complete_names, read_run
from amdim_fast.runlog import RunLog, read_config
from amdim_fast.stopping import Stopped, StopSignals
from amdim_fast.tensorboard_server import check_tensorboard
from amdim_fast.training import Training, build_model
from amdim_fast.training_loop import run_steps
from amdim_fast.views import POLICIES

PathLike = str | os.PathLike[str]


def pretrain(
    recipe: Recipe | str | None = None,
    *,
    name: str | None = None,
    runs_dir: PathLike = "runs",
    data_dir: PathLike | None = None,
    download: bool = False,
    skip_bad: bool = False,
    seed: int | None = None,
    device: str | None = None,
    log_every: int | None = None,
    workers: int | None = None,
    tensorboard: bool = False,
    tensorboard_port: int | None = None,
    resume: PathLike | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Pre-train an encoder; everything is kept in ``runs_dir / name``.

    The folder holds ``config.json``, ``log.jsonl``, the checkpoints of ``RunCheckpoints`` (for
    ``load_checkpoint``), ``curves.png`` and ``summary.json``. Where the data set has labels, a
    linear and an MLP probe learn along on detached features.

    SIGTERM and Ctrl-C, in the main thread, finish the step and save it. A run that was stopped or
    killed goes on from its latest checkpoint with ``resume``: on a CPU, with the same number of
    threads and versions, to the same bits as if it had never stopped.

    Args:
        recipe: a Recipe, or the name of one in ``RECIPES``; None is "digits", or the resumed run's.
        name: of the run; the recipe's name and the time by default.
        runs_dir: folder of runs; created if missing.
        data_dir: folder of the data set, "data" by default; this, ``download`` and ``skip_bad`` are
            ``load_data``'s.
        download: whether to fetch what is missing there.
        skip_bad: whether to leave out image files that cannot be decoded.
        seed: of everything random, 0 by default.
        device: where encoder, loss and views run, "cpu" by default.
        log_every: in place of the recipe's.
        workers: processes that decode image files; None uses every CPU.
        tensorboard: write events for TensorBoard into the folder too.
        tensorboard_port: serve them at this port of localhost while the run goes.
        resume: folder of a run to go on with. ``data_dir``, ``seed`` and ``device`` are that run's
            by default; of the recipe, ``log_every``, ``checkpoint_every`` and ``keep_every`` may
            differ.
        progress: whether to show a bar with loss, images/s and the share of data and views.

    Returns:
        The summary: step, steps, folder, whether the run was ``interrupted``; if not, also seconds,
        images/s, peak memory in bytes, the loss's plan and, with ``recipe.baselines``, accuracies
        of the linear probe on held-out images (raw pixels, random weights, pre-trained).

    Raises:
        ValueError: an argument is out of range, or not what the resumed run began with.
        FileExistsError: the run exists. FileNotFoundError: there is no run to resume.
        FloatingPointError: a loss or weight is not finite; names step, term and the last good
            checkpoint. OSError: a checkpoint could not be written; earlier ones are as they were.

    Deterministic for a seed, device, library versions and number of threads; on a GPU with
    ``recipe.deterministic``.
    """
    if resume is None:
        setup = _new(recipe, data_dir, seed, device, skip_bad)
    else:
        if name is not None:
            raise ValueError(f"name is {name!r}, but a resumed run keeps its own; leave it out")
        setup = _resumed(Path(resume), recipe, data_dir, seed, device, skip_bad)
    if log_every is not None:
        setup = replace(setup, recipe=replace(setup.recipe, log_every=log_every))
    recipe = setup.recipe
    _check(setup)
    if tensorboard or tensorboard_port is not None:
        check_tensorboard(tensorboard_port)
    data = load_data(recipe.data, setup.data_dir, download=download, skip_bad=setup.skip_bad)
    _check_data(setup, data)
    started = datetime.now(timezone.utc)
    folder = setup.folder or Path(runs_dir) / (name or f"{recipe.name}-{started:%Y%m%d-%H%M%S}")
    with algorithms(recipe.deterministic):
        training, meter, checkpoints = _begin(setup, folder, data)
        config = checkpoints.fixed | {
            "data_dir": str(setup.data_dir),
            "skip_bad": setup.skip_bad,
            "threads": torch.get_num_threads(),
            "versions": _versions(),
            "started": started.isoformat(timespec="seconds"),
        }
        with StopSignals() as signals, contextlib.suppress(Stopped):
            with signals.finishing():
                log = RunLog(
                    folder,
                    config,
                    resume_step=checkpoints.step,
                    tensorboard=tensorboard,
                    tensorboard_port=tensorboard_port,
                )
                if checkpoints.step is None:
                    checkpoints.save(training, meter)
            with log:
                signals.check()
                if recipe.baselines and checkpoints.fixed["baselines"] is None:
                    checkpoints.fixed["baselines"] = _baselines(training, data)
                with signals.finishing():
                    run_steps(
                        training,
                        data.train,
                        setup.seed,
                        log=log,
                        checkpoints=checkpoints,
                        meter=meter,
                        signals=signals,
                        workers=workers,
                        progress=progress,
                    )
                signals.check()
                summary = _summary(training, checkpoints, data)
                with signals.finishing():
                    log.finish(summary)
                return summary
    return _position(training, folder) | {"interrupted": True}


@dataclass(frozen=True)
class _Setup:
    """What a run begins or goes on with; ``contents`` are its checkpoint's, empty for a new one."""

    recipe: Recipe
    data_dir: Path
    seed: int
    device: str
    skip_bad: bool
    folder: Path | None
    contents: dict[str, Any]


def _new(
    recipe: Recipe | str | None,
    data_dir: PathLike | None,
    seed: int | None,
    device: str | None,
    skip_bad: bool,
) -> _Setup:
    if not isinstance(recipe, Recipe):
        recipe = "digits" if recipe is None else recipe
        if recipe not in RECIPES:
            raise ValueError(f"recipe is {recipe!r}; it must be one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    folder = Path("data" if data_dir is None else data_dir)
    return _Setup(recipe, folder, seed or 0, device or "cpu", skip_bad, None, {})


def _resumed(
    folder: Path,
    recipe: Recipe | str | None,
    data_dir: PathLike | None,
    seed: int | None,
    device: str | None,
    skip_bad: bool,
) -> _Setup:
    contents = read_run(folder)
    config = read_config(folder)
    begun = Recipe.from_dict(contents["recipe"])
    if isinstance(recipe, str):
        recipe = _new(recipe, None, None, None, False).recipe
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
    return _Setup(
        recipe,
        Path(config["data_dir"] if data_dir is None else data_dir),
        contents["seed"],
        contents["device"],
        skip_bad or config["skip_bad"],
        folder,
        contents,
    )


def _check(setup: _Setup) -> None:
    """What can be said before data are read."""
    policy, device = setup.recipe.policy, setup.device
    if policy not in POLICIES:
        raise ValueError(f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(
            f"device is {device!r}; it must be one of torch's, such as cpu or cuda"
        ) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no CUDA device here; use cpu")


def _check_data(setup: _Setup, data: ImageData) -> None:
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
    before, now = setup.contents.get("data"), _facts(data)
    if before is not None and before != now:
        raise ValueError(
            f"the data set has {now['images']} training images of {now['classes']} classes, but"
            f" had {before['images']} of {before['classes']} when the run began; give it the same"
            " with --data-dir"
        )


def _facts(data: ImageData) -> dict[str, int]:
    """By which a resumed run knows its data again."""
    labeled = bool((data.train.labels >= 0).any())
    return {"images": len(data.train), "classes": len(data.classes) if labeled else 0}


def _begin(setup: _Setup, folder: Path, data: ImageData) -> tuple[Training, Meter, RunCheckpoints]:
    """At step 0, or as the checkpoint has it."""
    recipe, contents, facts = setup.recipe, setup.contents, _facts(data)
    seed_everything(setup.seed)
    model = build_model(recipe, facts["classes"] or None).to(setup.device)
    training = Training(model, recipe, len(data.train), setup.seed)
    fixed = {"recipe": asdict(recipe), "seed": setup.seed, "device": setup.device, "data": facts}
    fixed["baselines"] = contents.get("baselines")
    checkpoints = RunCheckpoints(folder, recipe, fixed, contents.get("score"))
    meter = Meter(training.names, contents.get("window"))
    if contents:
        model.load_state_dict(contents["model"])
        training.load_state(contents)
        restore_random_states(contents["random"])
        checkpoints.step, checkpoints.seconds = training.step, contents["seconds"]
        complete_names(folder, contents)
        contents.clear()
    return training, meter, checkpoints


def _baselines(training: Training, data: ImageData) -> dict[str, float]:
    return {
        "accuracy_raw_pixels": probe_pixels(data),
        "accuracy_random_weights": _probe(training, data),
    }


def _probe(training: Training, data: ImageData) -> float:
    return probe_encoder(training.model.encoder, data, POLICIES[training.recipe.policy])


def _position(training: Training, folder: Path) -> dict[str, Any]:
    return {"step": training.step, "steps": training.total_steps, "folder": str(folder)}


def _summary(training: Training, checkpoints: RunCheckpoints, data: ImageData) -> dict[str, Any]:
    recipe, seconds, plan = training.recipe, checkpoints.seconds, last_plan()
    summary = _position(training, checkpoints.folder) | {"interrupted": False}
    if recipe.baselines:
        summary |= checkpoints.fixed["baselines"]
        summary["accuracy_pretrained"] = _probe(training, data)
    return summary | {
        "train_seconds": seconds,
        "images_per_second": training.step * recipe.batch_size / seconds,
        "peak_memory_bytes": _peak_memory(training.device),
        "loss_backend": None if plan is None else f"{plan.backend} ({plan.products})",
    }


def _versions() -> dict[str, str]:
    return {
        "amdim_fast": amdim_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator on CUDA, else the process's resident peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
