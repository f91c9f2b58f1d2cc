"""A training step as one CUDA graph, which costs the host a single launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Steps before the recording, which let libraries choose algorithms and optimizers make their state.
WARM_UP = 3


def check_graph(cuda_graph: bool, device: torch.device, processes: int) -> None:
    """Raise ValueError if steps are to be a CUDA graph and cannot be."""
    if cuda_graph and device.type != "cuda":
        raise ValueError(f"cuda_graph is on, but the device is {device}; it must be a CUDA device")
    if cuda_graph and processes > 1:
        raise ValueError(
            f"cuda_graph is on, but there are {processes} processes; it works with one: turn it off"
        )


class StepGraph:
    """Calls ``step`` a few times, then records it and replays the recording.

    Args:
        step: work of the device alone: inputs -> values. What it reads besides the inputs must stay
            at the same addresses, and what it draws must come from torch's default generator.
        device: a CUDA device.

    Inputs must keep their shapes and types. Memory of a step stays allocated between steps.
    """

    def __init__(self, step: Callable[..., Tensor], device: torch.device) -> None:
        self._step, self._device = step, device
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._values: Tensor | None = None
        self._replay: Callable[[], None] | None = None
        self._stream: torch.cuda.Stream | None = None  # of the warm-up

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The values of a step, in memory of their own.

        Raises:
            ValueError: inputs have other shapes than those recorded. RuntimeError: the step cannot
                be recorded.
        """
        self._calls += 1
        if self._calls <= WARM_UP:
            if self._device.type == "cuda" and self._stream is None:
                self._stream = torch.cuda.Stream(self._device)
            return beside(lambda: self._step(*inputs), self._stream)
        if self._replay is None:
            self._record(inputs)
        for place, given in zip(self._inputs, inputs, strict=True):
            if place.shape != given.shape:
                raise ValueError(
                    f"a step got an input of shape {list(given.shape)}; the CUDA graph was recorded"
                    f" with {list(place.shape)}: keep the size of batches, or turn off cuda_graph"
                )
            place.copy_(given)
        assert self._replay is not None
        assert self._values is not None
        self._replay()
        return self._values.clone()

    def _record(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = [given.clone() for given in inputs]
        try:
            self._replay, self._values = record(lambda: self._step(*self._inputs), self._device)
        except RuntimeError as error:
            raise RuntimeError(
                f"the step cannot be recorded as a CUDA graph ({error}); turn off cuda_graph"
            ) from error


def beside(step: Callable[[], Tensor], stream: torch.cuda.Stream | None) -> Tensor:
    """``step()`` on another stream, as a recording is, before what the current one does next.

    Nodes of autograd remember their stream, and a recording may not wait for the default one.
    """
    if stream is None:
        return step()
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        values = step()
    current.wait_stream(stream)
    values.record_stream(current)
    return values


def record(step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """A call that replays ``step``, and where it leaves its result; does not run the step."""
    with torch.cuda.device(device):
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that reads batches, may allocate meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            values = step()
    return graph.replay, values
