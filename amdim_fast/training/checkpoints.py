"""The checkpoints of a run: the latest, the best, and those that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amdim_fast.files import keep_as
from amdim_fast.model.pretrained import save_checkpoint
from amdim_fast.training.meter import Meter, NotFinite
from amdim_fast.training.randomness import random_states
from amdim_fast.training.recipes import Recipe
from amdim_fast.training.step import Training

LAST, BEST, KEPT = "checkpoint.pt", "checkpoint-best.pt", "checkpoint-{step:08d}.pt"


class RunCheckpoints:
    """Writes a run's checkpoints, each whole or not at all.

    ``checkpoint.pt`` is the latest. ``checkpoint-best.pt`` is the best of the regular ones, which
    come every ``checkpoint_every`` steps and after the last step: the one before which, since the
    previous regular one, the online linear probe was most accurate or, without labels, the mean
    loss was lowest. Every ``keep_every`` steps one is kept as ``checkpoint-STEP.pt``. Where the
    file system has hard links, these may be names of one file.

    Args:
        folder: of the run.
        recipe: for ``checkpoint_every`` and ``keep_every``.
        fixed: what every checkpoint holds besides, such as the seed.
        score: the best so far, with its step.

    Attributes:
        step: of the latest checkpoint, None before the first.
        fixed: as given; may be added to.
        seconds: training time so far, set by the caller.
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
        """Whether a checkpoint is due after the step that was just taken."""
        step, every, keep = training.step, self.recipe.checkpoint_every, self.recipe.keep_every
        return step % every == 0 or step == training.total_steps or bool(keep and step % keep == 0)

    def save(self, training: Training, meter: Meter) -> None:
        """Write the latest checkpoint, and name it the best or keep it if that is due.

        Every process calls it, rank 0 writes, and all return when it has written.

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
                unrecorded=meter.unrecorded,
                score=self._best,
                seconds=self.seconds,
            )
            self.step = step
            self.name_latest(step, is_best=is_best)
        except (OSError, RuntimeError) as error:  # torch.save wraps some of the system's errors
            begun = self.step is not None
            way_on = f"continue with --resume {self.folder}" if begun else "start the run anew"
            raise OSError(
                f"the checkpoint of step {step} could not be written to {self.folder}"
                f" ({_reason(error)});"
                f" {self.last_good()}; make room and {way_on}"
            ) from error

    def name_latest(self, step: int, *, is_best: bool) -> None:
        """Give the latest checkpoint, of this step, its second names: the best, and a kept one.

        Raises:
            OSError: a name cannot be given.
        """
        latest = self.folder / LAST
        if is_best:
            keep_as(latest, self.folder / BEST)
        if step and self.recipe.keep_every and step % self.recipe.keep_every == 0:
            keep_as(latest, self.folder / KEPT.format(step=step))

    def last_good(self) -> str:
        """A clause that names the latest checkpoint, for error messages."""
        if self.step is None:
            return "there is no earlier one"
        return f"the last good checkpoint is {self.folder / LAST}, of step {self.step}"


def _reason(error: BaseException) -> str:
    """The system's message, even where torch.save raised an error of its own on top."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__context__
    return str(error).splitlines()[0]
