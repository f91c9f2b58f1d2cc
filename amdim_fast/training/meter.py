"""Reads what steps returned, seldom: finite or not, and sums for records and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amdim_fast.distributed.ranks import Ranks
from amdim_fast.training.step import COUNTS, LOSS_TERMS

PROBES = ("linear", "mlp")


class NotFinite(FloatingPointError):  # noqa: N818 - a FloatingPointError by another name
    """A term of the loss is NaN or infinite; the message says which, and at which step."""


class Meter:
    """Values of steps, kept on their device until ``read``.

    Args:
        names: of the values.
        window: sums since the last regular checkpoint, from ``window`` of an earlier meter.
        ranks: the processes whose values are averaged or, the counts, summed by ``read``, which all
            of them call after the same step.
    """

    def __init__(
        self,
        names: Sequence[str],
        window: dict[str, float] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.names = tuple(names)
        self._ranks = ranks or Ranks()
        self._unread: list[tuple[int, Tensor]] = []
        self._since_record: dict[str, float] = {}
        self._window = dict(window or {})
        self._latest: dict[str, float] = {}

    def add(self, step: int, values: Tensor) -> None:
        """Keep the values of a step."""
        self._unread.append((step, values))

    def read(self) -> None:
        """Wait for the device and sum up.

        Raises:
            NotFinite: at the first step with such a value.
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

    def close_window(self) -> float | None:
        """How good the window was, higher is better, or None; begins a new one.

        The online linear probe's accuracy where the data set has labels, None if the window saw
        none; else the negative mean loss, None if the window had no step.
        """
        window, self._window = self._window, {}
        if not window:
            return None
        if "labeled" in self.names:
            return _share(window, "correct_linear")
        return -window["loss"] / window["steps"]


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value


def _share(sums: Mapping[str, float], name: str) -> float | None:
    return sums[name] / sums["labeled"] if sums.get("labeled") else None
