"""The loop over steps: batches, views, updates, records and checkpoints."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from amdim_fast.data.image_sets import ImageSet
from amdim_fast.data.loader import training_batches
from amdim_fast.distributed.ranks import LostRank, is_loss, reason
from amdim_fast.training.checkpoints import RunCheckpoints
from amdim_fast.training.log import RunLog
from amdim_fast.training.meter import Meter, NotFinite
from amdim_fast.training.signals import StopSignals
from amdim_fast.training.step import LOSS_TERMS, Training


def run_steps(
    training: Training,
    images: ImageSet,
    seed: int,
    *,
    log: RunLog | None,
    checkpoints: RunCheckpoints,
    meter: Meter,
    signals: StopSignals,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Take all steps that are left, or stop after the one in which a signal came to any process.

    Either way the last step's checkpoint is there afterwards. The device is waited for only at
    records (every ``log_every`` steps, the first and the last) and checkpoints. Several processes
    exchange two integers on the CPU before and after each step; rank 0 has the log.

    Raises:
        NotFinite: naming step, term and the last good checkpoint. OSError, ChildProcessError: of
        the loader, of the log or of a checkpoint. LostRank: naming the last good checkpoint.
    """
    recipe, ranks = training.recipe, training.ranks
    clock = _Clock(checkpoints.seconds, training.step)
    options: dict[str, Any] = {"seed": seed, "start": training.step, "device": training.device}
    options |= {"rank": ranks.rank, "world_size": ranks.world_size}
    with (
        tqdm(
            total=training.total_steps,
            initial=training.step,
            unit="step",
            disable=not progress,
            file=sys.stderr,
        ) as bar,
        training_batches(
            images, recipe.batch_size, workers=ranks.workers(workers), **options
        ) as loader,
    ):
        try:
            stop = ranks.any(signals.requested)
            while training.step < training.total_steps and not stop:
                with ranks.together():
                    before = loader.waited
                    batch = next(loader)
                    clock.waited += loader.waited - before
                    started = time.perf_counter()
                    views = training.views(batch)
                    clock.viewing += time.perf_counter() - started
                meter.add(training.step + 1, training.update(views, batch.labels))
                step = training.step
                bar.update()
                if step % recipe.log_every == 0 or step in (1, training.total_steps):
                    record = meter.record()
                    speed = clock.record(step, recipe.batch_size)
                    if log is not None:
                        with ranks.telling():
                            log.write({"step": step, **record, **speed})
                    bar.set_postfix(_shown(record, speed))
                if checkpoints.due(training):
                    _save(training, checkpoints, meter, clock)
                    if log is not None:
                        with clock.paused(), ranks.telling():
                            log.draw_curves()
                stop = ranks.any(signals.requested)
            if checkpoints.step != training.step:
                _save(training, checkpoints, meter, clock)
        except NotFinite as error:
            raise NotFinite(
                f"{error}; {checkpoints.last_good()}; a lower --learning-rate, a higher"
                " --reg-weight or --clip-grad-norm may help"
            ) from None
        except RuntimeError as error:
            if ranks.group is None or not is_loss(error):
                raise
            raise LostRank(
                f"rank {ranks.rank} of {ranks.world_size} lost another process in step"
                f" {training.step + 1} ({reason(error)}); {checkpoints.last_good()}; start all of"
                f" them again with --resume {checkpoints.folder}"
            ) from error


def _save(training: Training, checkpoints: RunCheckpoints, meter: Meter, clock: _Clock) -> None:
    checkpoints.seconds = clock.total()
    with clock.paused():
        checkpoints.save(training, meter)


def _shown(record: dict[str, Any], speed: dict[str, float]) -> dict[str, str]:
    shown = {"loss": f"{sum(record[term] for term in LOSS_TERMS):.3f}"}
    if record.get("accuracy_linear") is not None:
        shown["probe"] = f"{record['accuracy_linear']:.1%}"
    shown["images/s"] = f"{speed['images_per_second']:.0f}"
    shown["data"] = f"{speed['data_wait_share'] + speed['views_share']:.0%}"
    return shown


class _Clock:
    """Seconds of the run, and speed and shares since the last record, saving left out of these."""

    def __init__(self, seconds: float, step: int) -> None:
        self._offset = seconds - time.perf_counter()
        self._begin = time.perf_counter()
        self._step = step
        self.waited = self.viewing = 0.0

    def total(self) -> float:
        return time.perf_counter() + self._offset

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._begin += time.perf_counter() - started

    def record(self, step: int, batch_size: int) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = now - self._begin
        speed = {
            "images_per_second": (step - self._step) * batch_size / elapsed,
            "data_wait_share": self.waited / elapsed,
            "views_share": self.viewing / elapsed,
            "seconds": self.total(),
        }
        self._begin, self._step = now, step
        self.waited = self.viewing = 0.0
        return speed
