"""Running a module a second time: with the same random draws, and without side effects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class RandomState:
    """The present states of torch's default generators of the CPU and of ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._own = None
        if device.type != "cpu":
            self._own = torch.get_device_module(device).get_rng_state(device)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, draws repeat those after this state; afterwards, generators are as before."""
        devices = [] if self._own is None else [self._device]
        with torch.random.fork_rng(devices, device_type=self._device.type):
            torch.set_rng_state(self._cpu)
            if self._own is not None:
                torch.get_device_module(self._device).set_rng_state(self._own, self._device)
            yield


class BuffersKept:
    """A context that restores a module's buffers, such as running statistics, when it ends."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> None:
        self._before = [(buffer, buffer.clone()) for buffer in self._module.buffers()]

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for buffer, value in self._before:
                buffer.copy_(value)
        self._before = []
