"""Running a module without side effects: in evaluation mode, or again with the same draws."""

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


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is in its former mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # A module's own train() may do more than set the flag, also in modules inside it.
        for part, training in modes.items():
            if part.training != training:
                part.train(training)
        for part, training in modes.items():
            part.training = training
