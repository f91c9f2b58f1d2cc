"""Values and speed of steps, read from the device only for records and checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amdim_fast.distributed.ranks import Ranks
from amdim_fast.training.step import COUNTS, LOSS_TERMS

PROBES = ("linear", "mlp")
# What is timed within a step, and its share in a record: waiting for batches, and making views.
SPANS = {"waited": "data_wait_share", "viewing": "views_share"}


class NotFinite(FloatingPointError):  # noqa: N818 - a FloatingPointError by another name
    """A term of the loss is NaN or infinite; the message says which, and at which step."""


class Meter:
    """Values of steps, kept on their device until ``read``.

    Args:
        names: names of the values.
        window: sums since the last regular checkpoint: ``window`` of an earlier meter.
        ranks: the processes of the run. All call ``read`` after the same step; it sums their counts
            and averages their other values.
        unrecorded: sums since the last record: ``unrecorded`` of an earlier meter.
    """

    def __init__(
        self,
        names: Sequence[str],
        window: dict[str, float] | None = None,
        ranks: Ranks | None = None,
        unrecorded: dict[str, float] | None = None,
    ) -> None:
        self.names = tuple(names)
        self._ranks = ranks or Ranks()
        self._unread: list[tuple[int, Tensor]] = []
        self._since_record = dict(unrecorded or {})
        self._window = dict(window or {})
        self._latest: dict[str, float] = {}

    def add(self, step: int, values: Tensor) -> None:
        """Keep the values of a step."""
        self._unread.append((step, values))

    def read(self) -> None:
        """Wait for the device, and add the kept values to the sums.

        Raises:
            NotFinite: a value is not finite; names the first step with one.
        """
        if not self._unread:
            return
        steps, values = zip(*self._unread, strict=True)
        self._unread = []
        table = self._ranks.sum(torch.stack(values).double())
        parts = [1 if name in COUNTS else self._ranks.world_size for name in self.names]
        for step, row in zip(steps, (table.cpu() / torch.tensor(parts)).tolist(), strict=True):
            self._latest = dict(zip(self.names, row, strict=True))
            for name, value in self._latest.items():
                if not math.isfinite(value):
                    raise NotFinite(f"{name} is {value} at step {step}")
            sums = {name: self._latest[name] for name in COUNTS if name in self._latest}
            sums |= {"steps": 1, "loss": sum(self._latest[term] for term in LOSS_TERMS)}
            _add(self._since_record, sums)
            _add(self._window, sums)

    def record(self) -> dict[str, Any]:
        """Terms of the latest step, and accuracies of the online probes since the last record."""
        self.read()
        record: dict[str, Any] = {k: v for k, v in self._latest.items() if k not in COUNTS}
        if "labeled" in self.names:
            for probe in PROBES:
                record[f"accuracy_{probe}"] = _share(self._since_record, f"correct_{probe}")
        self._since_record.clear()
        return record

    @property
    def window(self) -> dict[str, float]:
        """Sums since ``close_window``, for the checkpoint."""
        return dict(self._window)

    @property
    def unrecorded(self) -> dict[str, float]:
        """Sums since ``record``, for the checkpoint."""
        return dict(self._since_record)

    def close_window(self) -> float | None:
        """How good the steps of the window were, higher is better; begins a new window.

        The accuracy of the online linear probe if the data set has labels, else the negated mean
        loss. None if the window had no labels or no steps.
        """
        window, self._window = self._window, {}
        if not window:
            return None
        if "labeled" in self.names:
            return _share(window, "correct_linear")
        return -window["loss"] / window["steps"]


class Clock:
    """Seconds of a run, and rates since the last record, without what was ``paused``.

    Args:
        seconds: seconds of the run so far.
        step: steps done so far.
        device: where the steps run. On CUDA, the time in a ``span`` is the device's: a host that
            waits while the device still has work to do costs nothing.
    """

    def __init__(self, seconds: float, step: int, device: torch.device) -> None:
        self._offset = seconds - time.perf_counter()
        self._begin = time.perf_counter()
        self._step = step
        self._device = device
        self._spans = {name: deque[tuple[Any, Any]]() for name in SPANS}
        self._spent = dict.fromkeys(SPANS, 0.0)

    def total(self) -> float:
        """Seconds of the run."""
        return time.perf_counter() + self._offset

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context for what takes time between steps, such as saving."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._begin += time.perf_counter() - started

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A context whose time counts as ``name``, of ``SPANS``, until the next record."""
        begin = self._mark()
        yield
        spans = self._spans[name]
        spans.append((begin, self._mark()))
        while len(spans) > 1 and self._is_past(spans[0][1]):
            self._spent[name] += self._between(*spans.popleft())

    def record(self, step: int, batch_size: int) -> dict[str, float]:
        """Rate and shares since the last record, and seconds of the run.

        The device must have finished the spans, as it has when values of a later step were read.
        """
        now = time.perf_counter()
        elapsed = now - self._begin
        speed = {"images_per_second": (step - self._step) * batch_size / elapsed}
        for name, share in SPANS.items():
            seconds = self._spent[name] + sum(self._between(*span) for span in self._spans[name])
            speed[share] = seconds / elapsed
            self._spans[name].clear()
            self._spent[name] = 0.0
        self._begin, self._step = now, step
        return speed | {"seconds": self.total()}

    def _mark(self) -> Any:
        """This moment: of the host or, on CUDA, when the device has done all work so far."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _is_past(self, mark: Any) -> bool:
        return True if self._device.type != "cuda" else mark.query()

    def _between(self, begin: Any, end: Any) -> float:
        if self._device.type != "cuda":
            return end - begin
        return begin.elapsed_time(end) / 1e3


def progress_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What the progress bar shows of a record."""
    shown = {"loss": f"{sum(record[term] for term in LOSS_TERMS):.3f}"}
    if record.get("accuracy_linear") is not None:
        shown["probe"] = f"{record['accuracy_linear']:.1%}"
    shown["images/s"] = f"{record['images_per_second']:.0f}"
    shown["waiting"] = f"{record['data_wait_share']:.0%}"
    shown["views"] = f"{record['views_share']:.0%}"
    return shown


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value


def _share(sums: Mapping[str, float], name: str) -> float | None:
    return sums[name] / sums["labeled"] if sums.get("labeled") else None
