"""A run of pre-training on one process: opened, taken step by step, closed."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from amdim_fast.data.datasets import ImageData, describe_data
from amdim_fast.data.decoding import BadImage
from amdim_fast.data.image_sets import FileImages
from amdim_fast.data.loader import training_batches
from amdim_fast.data.progress import progress_bar
from amdim_fast.data.workers import worker_count
from amdim_fast.devices import execution_line
from amdim_fast.distributed.ranks import LostRank, Ranks, is_lost_rank, reason
from amdim_fast.training.changes import Changes
from amdim_fast.training.checkpoints import RunCheckpoints
from amdim_fast.training.folder import new_folder
from amdim_fast.training.initial import load_initial
from amdim_fast.training.log import RunLog
from amdim_fast.training.meter import Clock, Meter, NotFinite, progress_of
from amdim_fast.training.randomness import algorithms, seed_everything
from amdim_fast.training.resume import restore
from amdim_fast.training.schedule import describe_schedule
from amdim_fast.training.setup import Setup, data_facts, left_out_of
from amdim_fast.training.signals import Stopped, StopSignals
from amdim_fast.training.step import Training, build_model
from amdim_fast.training.summary import measure_baselines, summarize, versions
from amdim_fast.views.compiled import views_device


class Run:
    """A run on this process: its set-up, model, log, checkpoints and signals.

    Enter it as a context, ``open`` it, take a ``step`` while it ``goes_on``, and ``close`` it. A
    signal to stop ends the context early, without an error.

    Args:
        setup: what it begins with or resumes from.
        data: what ``load_for_run`` returned.
        ranks: the processes of the run, with the set-up's group.
        folder: where everything is written.
        timeout: seconds that a step waits for another process.
        workers: processes that decode image files; None is this process's share of the CPUs.
        progress: whether rank 0 shows a bar.

    Attributes:
        summary: what ``pretrain`` returns; complete once the context has ended.
    """

    def __init__(
        self,
        setup: Setup,
        data: ImageData,
        ranks: Ranks,
        folder: Path,
        timeout: float,
        *,
        workers: int | None = None,
        progress: bool = True,
    ) -> None:
        self.setup, self.data, self.folder = setup, data, folder
        self._all_ranks = ranks  # their group waits long, e.g. while rank 0 measures baselines
        self.ranks = ranks.for_steps(ranks.device(setup.device), timeout)
        self._workers, self._progress = workers, progress
        self.log: RunLog | None = None
        self._unread: Exception | None = None
        self.summary: dict[str, Any] = {}

    def __enter__(self) -> Run:
        with contextlib.ExitStack() as exits:
            exits.enter_context(algorithms(self.setup.recipe.deterministic))
            self._build()
            self.signals = exits.enter_context(StopSignals(raising=self.ranks.group is None))
            self._exits = exits.pop_all()
        return self

    def _build(self) -> None:
        """Build all that a step changes, as at step 0 or as the resumed run left it."""
        setup, ranks, contents = self.setup, self.ranks, self.setup.contents
        facts = data_facts(self.data)
        self._changes = Changes(setup, facts["images"], ranks.world_size)
        self._left_out = left_out_of(setup, self.data)
        seed_everything(setup.seed)
        model = build_model(setup.recipe, facts["classes"] or None, ranks.group)
        if model.evaluator is not None:
            model.evaluator.class_names = self.data.classes
        self._weights = ""
        if setup.init_from is not None and not contents:
            with self._all_ranks.together():
                self._weights = load_initial(model, setup.init_from)
        model = model.to(ranks.device(setup.device))
        self.training = Training(model, setup.recipe, len(self.data.train), setup.seed, ranks)
        sums = contents.get("window"), ranks, contents.get("unrecorded")
        self.meter = Meter(self.training.names, *sums)
        fixed = {
            "recipe": asdict(setup.recipe),
            "seed": setup.seed,
            "device": setup.device,
            "data": facts,
            "skip_bad": setup.skip_bad,
            "max_pixels": setup.max_pixels,
            "labels": setup.labels,
            "init_from": setup.init_from,
            "left_out": len(self._left_out["train"]),
            "baselines": contents.get("baselines"),
            "world_size": ranks.world_size,
        }
        self.checkpoints = RunCheckpoints(self.folder, setup.recipe, fixed, contents.get("score"))
        if contents:
            restore(contents, self.training, self.checkpoints)

    def open(self) -> None:
        """Open the log, save step 0, measure the baselines and start to load batches."""
        with self._all_ranks.together():
            if self.ranks.is_first:
                self._open_log()
        if self.checkpoints.step is None or self._changes.trains_on:
            self.checkpoints.save(self.training, self.meter)
        self.signals.check(self.ranks.any)
        with self._all_ranks.together():
            self._measure_baselines()
        self._start_loading()

    def _open_log(self) -> None:
        step, facts = self.checkpoints.step, self._facts()
        config = self.checkpoints.fixed | {
            "execution": facts,
            "class_names": list(self.data.classes),
            "data_dir": str(self.setup.data_dir),
            "working_dir": os.getcwd(),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        if step is None:
            self._exits.enter_context(new_folder(self.folder))
        self.log = self._exits.enter_context(
            RunLog(
                self.folder,
                config,
                resume_step=step,
                tensorboard=self.setup.tensorboard,
                tensorboard_port=self.setup.tensorboard_port,
            )
        )
        if self.setup.skip_bad or any(self._left_out.values()):
            self.log.write_left_out(self._left_out)
        if self._changes.trains_on:
            self.log.change_config(recipe=asdict(self.setup.recipe))
        if self._progress:
            print(execution_line(facts), describe_data(self.data), sep="\n", file=sys.stderr)
            print(describe_schedule(self.setup.recipe, len(self.data.train)), file=sys.stderr)
        if self._progress and self._weights:
            print(f"weights: {self._weights}", file=sys.stderr)
        for entry, sentence in self._changes.said(self.training.rate(self.training.step)):
            print(f"amdim-fast: resuming after step {step} {sentence}", file=sys.stderr)
            self.log.write({"step": step, **entry})

    def _facts(self) -> dict[str, str]:
        """What runs the steps; views are made on the CPU where their CUDA library is not built."""
        facts, made = self.training.describe(), views_device(self.training.device)
        if made != self.training.device:
            facts["views"] += f" on {made}, for want of the CUDA library (nvcc builds it)"
        return facts

    def _measure_baselines(self) -> None:
        fixed = self.checkpoints.fixed
        if self.log and self.setup.recipe.baselines and fixed["baselines"] is None:
            with self.signals.interruptible():
                weights = "random" if self.setup.init_from is None else "initial"
                fixed["baselines"] = measure_baselines(self.training, self.data, weights)

    def _start_loading(self) -> None:
        training, ranks, workers = self.training, self.ranks, self._workers
        if workers is None:
            workers = max(1, worker_count(None) // ranks.local_world_size)
        self._clock = Clock(self.checkpoints.seconds, training.step, training.device)
        self._bar = self._exits.enter_context(
            progress_bar(
                total=training.total_steps,
                initial=training.step,
                unit="step",
                shown=self._progress and ranks.is_first,
            )
        )
        self._loader = self._exits.enter_context(
            training_batches(
                self.data.train,
                self.setup.recipe.batch_size,
                seed=self.setup.seed,
                start=training.step,
                device=views_device(training.device),
                rank=ranks.rank,
                world_size=ranks.world_size,
                workers=workers,
            )
        )

    def goes_on(self) -> bool:
        """Whether steps are left and no process has been told to stop."""
        is_stopped = self.ranks.any(self.signals.requested)
        return self.training.step < self.training.total_steps and not is_stopped

    def step(self) -> None:
        """Take a step, then write the record and the checkpoint if they are due.

        Only these wait for the device. Records are due every ``log_every`` steps, after the first
        step and after the last. Several processes exchange three integers before and after a step.
        """
        training = self.training
        try:
            with self.ranks.together():
                views, labels = self._next_views()
        except Exception as error:
            self._save_before(error)
            raise
        self.meter.add(training.step + 1, training.update(views, labels))
        self._bar.update()
        if self._record_is_due():
            self._record()
        if self.checkpoints.due(training):
            self._save()
            if self.log is not None:
                with self._clock.paused(), self.ranks.telling():
                    self.log.update_curves()

    def _next_views(self) -> tuple[Tensor, Tensor]:
        device = self.training.device
        with self._clock.span("waited"):
            batch = next(self._loader)
        with self._clock.span("viewing"):
            views = self.training.views(batch).to(device)
        return views, batch.labels.to(device)

    def _record_is_due(self) -> bool:
        step = self.training.step
        return step % self.setup.recipe.log_every == 0 or step in (1, self.training.total_steps)

    def _record(self) -> None:
        step = self.training.step
        record = {"step": step, "epoch": step / self.training.steps_per_epoch}
        record |= {"learning_rate": self.training.rate(step - 1), **self.meter.record()}
        record |= self._clock.record(step, self.setup.recipe.batch_size)
        if self.log is not None:
            with self.ranks.telling():
                self.log.write(record)
        self._bar.set_postfix(progress_of(record))

    def _save(self) -> None:
        self.checkpoints.seconds = self._clock.total()
        with self._clock.paused():
            self.checkpoints.save(self.training, self.meter)

    def _save_before(self, error: Exception) -> None:
        """Save what was learned before images could not be read."""
        if is_lost_rank(error):
            return
        self.training.undo_views()
        if self.checkpoints.step != self.training.step:
            self._save()
        self._unread = error

    def close(self) -> None:
        """Save the last step and, unless a signal has stopped the run, summarize it."""
        if self.checkpoints.step != self.training.step:
            self._save()
        self._loader.close()
        self._bar.close()
        self.signals.check(self.ranks.any)
        self.ranks.close()
        self.summary = self._position() | {"interrupted": False}
        if self.log is not None:
            with self.signals.interruptible():
                self.summary |= summarize(
                    self.training,
                    self.data,
                    baselines=self.checkpoints.fixed["baselines"],
                    seconds=self.checkpoints.seconds,
                )
            self.log.finish(self.summary)

    def _position(self) -> dict[str, Any]:
        training = self.training
        return {"step": training.step, "steps": training.total_steps, "folder": str(self.folder)}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._exits.close()
        if isinstance(error, Stopped):
            self.summary = self._position() | {"interrupted": True}
            return True
        if self.checkpoints.step is not None:
            self._raise_with_last_good(error)
        return False

    def _raise_with_last_good(self, error: BaseException | None) -> None:
        """Raise an error of a step again, with the checkpoint to resume from, where that helps."""
        ranks, last_good = self.ranks, self.checkpoints.last_good()
        if isinstance(error, NotFinite):
            raise NotFinite(
                f"{error}; {last_good}; a lower --learning-rate, a higher --reg-weight or"
                " --clip-grad-norm may help"
            ) from None
        if isinstance(error, BadImage) or (
            error is self._unread and isinstance(error, OSError | MemoryError)
        ):
            if not isinstance(error, MemoryError):
                self._note_unreadable(str(error))
            way_on = f"go on with --resume {self.folder}"
            if isinstance(error, BadImage):
                way_on = f"repair it, or leave it out with --resume {self.folder} --skip-bad"
            raise type(error)(f"{error}; {last_good}; {way_on}") from error
        if ranks.group is not None and isinstance(error, RuntimeError) and is_lost_rank(error):
            raise LostRank(
                f"rank {ranks.rank} of {ranks.world_size} lost another process in step"
                f" {self.training.step + 1} ({reason(error)}); {last_good}; start all of them again"
                f" with --resume {self.folder}"
            ) from error

    def _note_unreadable(self, sentence: str) -> None:
        images = self.data.train
        name = images.named_in(sentence) if isinstance(images, FileImages) else None
        if self.log is not None and name is not None:
            self._left_out["train"][name] = sentence
            self.log.write_left_out(self._left_out)
