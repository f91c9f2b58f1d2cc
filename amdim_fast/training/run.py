"""Pre-training: from a recipe to a trained encoder, in one go or resumed."""

from __future__ import annotations

import contextlib
import platform
import resource
import sys
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from amdim_fast.data.datasets import ImageData, load_data
from amdim_fast.distributed.ranks import Ranks, joined
from amdim_fast.evaluation.linear_probe import probe_encoder, probe_pixels
from amdim_fast.nce.plan import last_plan
from amdim_fast.training.checkpoints import RunCheckpoints, complete_names
from amdim_fast.training.log import RunLog
from amdim_fast.training.loop import run_steps
from amdim_fast.training.meter import Meter
from amdim_fast.training.randomness import algorithms, restore_random_states, seed_everything
from amdim_fast.training.recipes import Recipe
from amdim_fast.training.setup import (
    PathLike,
    Setup,
    check_data,
    check_setup,
    data_facts,
    new_setup,
    resumed_setup,
)
from amdim_fast.training.signals import Stopped, StopSignals
from amdim_fast.training.step import Training, build_model
from amdim_fast.training.tensorboard import check_tensorboard
from amdim_fast.version import __version__
from amdim_fast.views.params import POLICIES


def pretrain(
    recipe: Recipe | str | None = None,
    data_dir: PathLike | None = None,
    *,
    name: str | None = None,
    runs_dir: PathLike = "runs",
    download: bool = False,
    skip_bad: bool = False,
    seed: int | None = None,
    device: str | None = None,
    log_every: int | None = None,
    workers: int | None = None,
    tensorboard: bool = False,
    tensorboard_port: int | None = None,
    resume: PathLike | None = None,
    timeout: float = 600.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Pre-train an encoder; everything is kept in ``runs_dir / name``.

    The folder holds ``config.json``, ``log.jsonl``, the checkpoints of ``RunCheckpoints`` (for
    ``load_checkpoint``), ``curves.png`` and ``summary.json``. Where the data set has labels, a
    linear and an MLP probe learn along on detached features.

    SIGTERM and Ctrl-C, in the main thread, finish the step and save it. A run that was stopped or
    killed goes on from its latest checkpoint with ``resume``: on a CPU, with the same number of
    threads and versions, to the same bits as if it had never stopped.

    Started by torchrun, each process takes its share of every batch, negatives come from all of
    them, and losses and gradients are those of one process with the whole batch; BatchNorm's
    statistics are a process's own unless ``recipe.sync_bn``. Rank 0 logs and saves, with its
    running statistics. A signal to any process stops all after the same step; an error in one is
    raised, with the same sentence, in all. A run may go on with another number of processes.

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
        workers: processes that decode image files; None uses every CPU, or this process's share.
        tensorboard: write events for TensorBoard into the folder too.
        tensorboard_port: serve them at this port of localhost while the run goes.
        resume: folder of a run to go on with. ``data_dir``, ``seed`` and ``device`` are that run's
            by default; of the recipe, ``log_every``, ``checkpoint_every`` and ``keep_every`` may
            differ. Every process reads it: it must be on storage that all machines see.
        timeout: seconds after which a process stops because another one does not answer; saving a
            checkpoint must be faster.
        progress: whether to show a bar with loss, images/s and the share of data and views.

    Returns:
        The summary: step, steps, folder, whether the run was ``interrupted``; if not, on rank 0
        also seconds, images/s, peak memory in bytes, the loss's plan and, with
        ``recipe.baselines``, accuracies of the linear probe on held-out images (raw pixels, random
        weights, pre-trained).

    Raises:
        ValueError: an argument is out of range, or not what the resumed run began with.
        FileExistsError: the run exists. FileNotFoundError: there is no run to resume.
        FloatingPointError: a loss or weight is not finite; names step, term and the last good
            checkpoint. OSError: a checkpoint could not be written; earlier ones are as they were.
        LostRank: another process ended or did not answer in time.

    Deterministic for a seed, device, library versions, number of threads and of processes; on a GPU
    with ``recipe.deterministic``. Batches, views and locations do not depend on the last.
    """
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout}; it must be a number of seconds above 0")
    with joined() as setting_up:
        with setting_up.together():
            if resume is None:
                setup = new_setup(recipe, data_dir, seed, device, skip_bad)
            elif name is not None:
                raise ValueError(f"name is {name!r}, but a resumed run keeps its own; leave it out")
            else:
                setup = resumed_setup(Path(resume), recipe, data_dir, seed, device, skip_bad)
            if log_every is not None:
                setup = replace(setup, recipe=replace(setup.recipe, log_every=log_every))
            check_setup(setup, setting_up)
            if setting_up.is_first and (tensorboard or tensorboard_port is not None):
                check_tensorboard(tensorboard_port)
        data = _load(setup, download, setting_up)
        setting_up.check_equal(data_facts(data) | {"step": setup.contents.get("step")})
        started = datetime.now(timezone.utc)
        new_name = setting_up.shared(name or f"{setup.recipe.name}-{started:%Y%m%d-%H%M%S}")
        folder = setup.folder or Path(runs_dir) / new_name
        ranks = setting_up.for_steps(setting_up.device(setup.device), timeout)
        before = setup.contents.get("world_size", 1) if setup.contents else None
        with algorithms(setup.recipe.deterministic):
            training, meter, checkpoints = _begin(setup, folder, data, ranks)
            config = checkpoints.fixed | {
                "data_dir": str(setup.data_dir),
                "skip_bad": setup.skip_bad,
                "threads": torch.get_num_threads(),
                "versions": _versions(),
                "started": started.isoformat(timespec="seconds"),
            }
            with StopSignals(raising=ranks.group is None) as signals, contextlib.suppress(Stopped):
                with signals.finishing():
                    with setting_up.together():
                        served = {
                            "tensorboard": tensorboard,
                            "tensorboard_port": tensorboard_port,
                        }
                        log = _open_log(checkpoints, config, served, ranks, before)
                    if checkpoints.step is None:
                        checkpoints.save(training, meter)
                with log or contextlib.nullcontext():
                    signals.check(ranks.any)
                    with setting_up.together():
                        fixed = checkpoints.fixed
                        if log and setup.recipe.baselines and fixed["baselines"] is None:
                            fixed["baselines"] = _baselines(training, data)
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
                            progress=progress and ranks.is_first,
                        )
                    signals.check(ranks.any)
                    ranks.close()
                    if log is None:
                        return _position(training, folder) | {"interrupted": False}
                    summary = _summary(training, checkpoints, data)
                    with signals.finishing():
                        log.finish(summary)
                    return summary
        return _position(training, folder) | {"interrupted": True}


def _load(setup: Setup, download: bool, ranks: Ranks) -> ImageData:
    """The data set; where something is fetched, rank 0 goes before one process of each machine."""
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
        )
        check_data(setup, data)
    return data


def _open_log(
    checkpoints: RunCheckpoints,
    config: dict[str, Any],
    served: dict[str, Any],
    ranks: Ranks,
    world_size: int | None,
) -> RunLog | None:
    """Of rank 0; says where a run goes on from ``world_size`` processes on another number."""
    if not ranks.is_first:
        return None
    step = checkpoints.step
    log = RunLog(checkpoints.folder, config, resume_step=step, **served)
    if world_size not in (None, ranks.world_size):
        print(
            f"amdim-fast: goes on after step {step} with {ranks.world_size} process(es), where it"
            f" had {world_size}",
            file=sys.stderr,
        )
        log.write({"step": step, "world_size": ranks.world_size, "world_size_before": world_size})
    return log


def _begin(
    setup: Setup, folder: Path, data: ImageData, ranks: Ranks
) -> tuple[Training, Meter, RunCheckpoints]:
    """At step 0, or as the checkpoint has it."""
    recipe, contents, facts = setup.recipe, setup.contents, data_facts(data)
    seed_everything(setup.seed)
    model = build_model(recipe, facts["classes"] or None, ranks.group)
    training = Training(
        model.to(ranks.device(setup.device)), recipe, len(data.train), setup.seed, ranks
    )
    fixed = {"recipe": asdict(recipe), "seed": setup.seed, "device": setup.device, "data": facts}
    fixed |= {"baselines": contents.get("baselines"), "world_size": ranks.world_size}
    checkpoints = RunCheckpoints(folder, recipe, fixed, contents.get("score"))
    meter = Meter(training.names, contents.get("window"), ranks)
    if contents:
        model.load_state_dict(contents["model"])
        training.load_state(contents)
        restore_random_states(contents["random"])
        checkpoints.step, checkpoints.seconds = training.step, contents["seconds"]
        if ranks.is_first:
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
        "amdim_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator on CUDA, else the process's resident peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
