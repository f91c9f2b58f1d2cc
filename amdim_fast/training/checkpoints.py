"""The checkpoints of a run: the last one, the best, and those that are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amdim_fast.checkpoints.formats import CheckpointError
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.files import keep_as, remove_temporaries
from amdim_fast.model.pretrained import save_checkpoint
from amdim_fast.training.meter import Meter, NotFinite
from amdim_fast.training.randomness import random_states
from amdim_fast.training.recipes import Recipe
from amdim_fast.training.step import Training

LAST, BEST, KEPT = "checkpoint.pt", "checkpoint-best.pt", "checkpoint-{step:08d}.pt"
_NEEDED = ("recipe", "step", "optimizer", "generators", "random", "seed", "score", "data")


class RunCheckpoints:
    """Writes a run's checkpoints, each whole or not at all.

    ``checkpoint.pt`` is the latest. ``checkpoint-best.pt`` is the regular one (every
    ``checkpoint_every`` steps, and the last) before which the online linear probe was most often
    right, since the regular one before it; without labels, the one of the lowest mean loss. Every
    ``keep_every`` steps one is kept as ``checkpoint-STEP.pt``. The three are names of one file
    where the file system has hard links.

    Args:
        folder: of the run.
        recipe: for ``checkpoint_every`` and ``keep_every``.
        fixed: what each checkpoint also holds, such as the seed.
        score: of the best so far, with its step.

    Attributes:
        step: of the latest checkpoint, None before the first.
        fixed: as given; may be added to.
        seconds: of training until now, set by the caller.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        fixed: Mapping[str, Any],
        score: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.recipe = folder, recipe
        self.fixed = dict(fixed)
        self.step: int | None = None
        self.seconds = 0.0
        self._best = dict(score or {"value": None, "step": None})

    def due(self, training: Training) -> bool:
        """Whether a checkpoint belongs here."""
        step, every, keep = training.step, self.recipe.checkpoint_every, self.recipe.keep_every
        return step % every == 0 or step == training.total_steps or bool(keep and step % keep == 0)

    def save(self, training: Training, meter: Meter) -> None:
        """Write the latest checkpoint and whatever other names are due for it.

        Every process calls it, rank 0 writes, and all return when it has.

        Raises:
            NotFinite: a step's loss, or a weight, is not finite; nothing is written.
            OSError: it could not be written; the sentence names the last good checkpoint.
        """
        meter.read()
        step, ranks = training.step, training.ranks
        with ranks.together():
            if not training.weights_are_finite():
                raise NotFinite(f"a weight is not finite after step {step}")
        is_best = False
        if step % self.recipe.checkpoint_every == 0 or step == training.total_steps:
            value = meter.close_window()
            is_best = value is not None and (
                self._best["value"] is None or value > self._best["value"]
            )
            if is_best:
                self._best = {"value": value, "step": step}
        with ranks.together():
            if ranks.is_first:
                self._write(training, meter, is_best)
        self.step = step

    def _write(self, training: Training, meter: Meter, is_best: bool) -> None:
        step = training.step
        try:
            save_checkpoint(
                self.folder / LAST,
                training.model,
                **training.state(),
                **self.fixed,
                random=random_states(),
                window=meter.window,
                score=self._best,
                seconds=self.seconds,
            )
            self.step = step
            if is_best:
                keep_as(self.folder / LAST, self.folder / BEST)
            if step and self.recipe.keep_every and step % self.recipe.keep_every == 0:
                keep_as(self.folder / LAST, self.folder / KEPT.format(step=step))
        except (OSError, RuntimeError) as error:  # torch.save wraps some of the system's errors
            raise OSError(
                f"the checkpoint of step {step} could not be written to {self.folder}"
                f" ({_reason(error)});"
                f" {self.last_good()}; make room and go on with --resume {self.folder}"
            ) from error

    def last_good(self) -> str:
        """Which checkpoint is there, in words."""
        if self.step is None:
            return "there is no earlier one"
        return f"the last good checkpoint is {self.folder / LAST}, of step {self.step}"


def _reason(error: BaseException) -> str:
    """The system's word for it, also where torch.save raised on top of that."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__context__
    return str(error).splitlines()[0]


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a run's latest checkpoint.

    Raises:
        FileNotFoundError: the folder or the checkpoint is missing. CheckpointError: it cannot be
        read, or is not of a run.
    """
    folder = Path(folder)
    if not (folder / LAST).exists():
        what = f"has no {LAST}" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{folder} {what}, so there is no run to resume; start it anew")
    contents = read_checkpoint(folder / LAST)
    missing = [name for name in _NEEDED if name not in contents]
    if missing:
        raise CheckpointError(
            f"{folder / LAST} holds no {', '.join(missing)}, so it cannot be resumed; start anew"
        )
    remove_temporaries(folder)
    return contents


def complete_names(folder: Path, contents: Mapping[str, Any]) -> None:
    """Name the latest checkpoint the best too, if a kill came between the two."""
    if contents["score"]["step"] == contents["step"] is not None:
        keep_as(folder / LAST, folder / BEST)
