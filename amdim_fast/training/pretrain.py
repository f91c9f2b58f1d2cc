"""``pretrain``: from a recipe to a trained encoder, in one go or resumed."""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from amdim_fast.data.workers import check_not_importing, worker_count
from amdim_fast.devices import find_device
from amdim_fast.distributed.ranks import joined
from amdim_fast.training.checkpoints import LAST
from amdim_fast.training.folder import locked
from amdim_fast.training.recipes import Recipe
from amdim_fast.training.resume import resumed_setup
from amdim_fast.training.run import Run
from amdim_fast.training.setup import PathLike, check_setup, load_for_run, new_setup

LONGEST_TIMEOUT = 10**9  # seconds


def pretrain(
    recipe: Recipe | str | None = None,
    data_dir: PathLike | None = None,
    *,
    name: str | None = None,
    runs_dir: PathLike = "runs",
    download: bool = False,
    skip_bad: bool = False,
    max_pixels: int | None = None,
    labels: bool = True,
    init_from: PathLike | None = None,
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
    """Pre-train an encoder; everything is written to ``runs_dir / name``.

    The folder holds ``config.json``, ``log.jsonl``, the checkpoints of ``RunCheckpoints`` (for
    ``load_checkpoint``), ``curves.png`` and ``summary.json``. If the data set has labels, a linear
    and an MLP probe are trained alongside, on detached features.

    SIGTERM or Ctrl-C, in the main thread, stops the run after the current step, which is saved. A
    run that was stopped or killed resumes from its latest checkpoint with ``resume``: on a CPU,
    with the same number of threads and the same versions, it ends in the same bits as if it had
    never stopped.

    Under torchrun, each process takes its share of every batch; negatives come from all processes,
    and losses and gradients are those of one process with the whole batch. BatchNorm's statistics
    are each process's own unless ``recipe.sync_bn``. Rank 0 logs and saves, with its own running
    statistics. A signal to any process stops all after the same step; an error in one is raised in
    all, with the same message. A run may resume on another number of processes.

    Args:
        recipe: a Recipe, or the name of one in ``RECIPES``; None is "digits", or the resumed run's.
        name: name of the run; by default the recipe's name and the time.
        runs_dir: folder of runs; created if missing.
        data_dir: folder of the data set, "data" by default; this, ``download`` and ``skip_bad`` go
            to ``load_data``.
        download: whether to download what is missing there.
        skip_bad: whether to leave out image files that cannot be decoded.
        max_pixels: the most that an image file may have; by default Pillow's own bound, or the
            resumed run's.
        labels: whether labels, where the data set has them, train probes and choose the best
            checkpoint; otherwise the loss does.
        init_from: checkpoint or export whose weights of the encoder, and of components, a new run
            begins with; optimizer, probes, step and everything random are new.
        seed: seed of everything random, 0 by default.
        device: where encoder, loss and views run; by default cuda where torch finds a GPU, else
            cpu.
        log_every: steps between records, in place of the recipe's.
        workers: processes that decode image files; None is one per CPU, shared among the
            processes of a machine.
        tensorboard: also write events for TensorBoard into the folder.
        tensorboard_port: serve them at this port of localhost during the run.
        resume: folder of the run to resume. ``data_dir``, ``seed`` and ``device`` default to that
            run's; ``device`` may differ, and of the recipe ``cuda_graph``, ``log_every``,
            ``checkpoint_every`` and ``keep_every``. So may its length, ``epochs``, ``steps`` and
            ``milestones``, also after its end: from the next step on, the learning rate is that of
            a run which has had this length from the beginning. Every process reads it: it must be
            on storage that all machines share.
        timeout: seconds after which a process gives up on another one that does not answer; saving
            a checkpoint must take less.
        progress: whether to say first what the run is on (device, precision, backends), and to show
            a bar with loss, images/s and the shares of waiting for data and of views.

    Returns:
        The summary: step, steps, folder and whether the run was ``interrupted``. If it was not,
        rank 0 adds seconds, images/s, peak memory in bytes, the loss's plan and, with
        ``recipe.baselines``, the linear probe's accuracies on held-out images: on raw pixels, on
        random weights and on the pre-trained encoder.

    Raises:
        ValueError: an argument is out of range, or differs from what the resumed run began with.
        FileExistsError: the run exists. FileNotFoundError: there is no run to resume.
        BlockingIOError: another process is training in its folder; names its id and host.
        FloatingPointError: a loss or a weight is not finite; names step, term and the last good
            checkpoint. OSError: a checkpoint could not be written; earlier ones are untouched.
        LostRank: another process ended or did not answer in time. RuntimeError: a worker process
            is importing a script that calls this outside of its guard.

    Deterministic for a seed, device, library versions, number of threads and of processes; on a GPU
    with ``recipe.deterministic``. Batches, views and locations do not depend on the last.
    """
    check_not_importing()
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise ValueError(
            f"timeout is {timeout}; it must be a number of seconds above 0, at most"
            f" {LONGEST_TIMEOUT:,}"
        )
    worker_count(workers)
    given: dict[str, Any] = {
        "recipe": recipe,
        "data_dir": data_dir,
        "seed": seed,
        "device": device,
        "skip_bad": skip_bad,
        "max_pixels": max_pixels,
        "labels": labels,
        "init_from": init_from,
        "log_every": log_every,
        "tensorboard": tensorboard,
        "tensorboard_port": tensorboard_port,
    }
    with joined() as ranks, contextlib.ExitStack() as held:
        if resume is None and device is None:
            given["device"] = ranks.shared(str(find_device()))
        with ranks.together():
            if resume is not None and ranks.is_first and (Path(resume) / LAST).exists():
                held.enter_context(locked(Path(resume)))
        with ranks.together():
            if resume is None:
                setup = new_setup(**given)
            else:
                setup = resumed_setup(resume, name=name, **given)
            check_setup(setup, ranks)
        data = load_for_run(setup, ranks, download=download, workers=workers, progress=progress)
        default_name = f"{setup.recipe.name}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
        folder = setup.folder or Path(runs_dir) / ranks.shared(name or default_name)
        with Run(setup, data, ranks, folder, timeout, workers=workers, progress=progress) as run:
            run.open()
            while run.goes_on():
                run.step()
            run.close()
    return run.summary
