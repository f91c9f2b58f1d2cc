"""A training step as one CUDA graph, which costs the host a single launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from amdim_fast.distributed.ranks import Ranks
from amdim_fast.model.residual.modules import has_hooks
from amdim_fast.training.recipes import Recipe

# Steps before the recording, which let libraries choose algorithms and optimizers make their state.
WARM_UP = 3
OFF = "--no-cuda-graph"


def check_graph(cuda_graph: bool | None, device: torch.device, processes: int) -> None:
    """Raise ValueError if steps are to be a CUDA graph and cannot be."""
    if cuda_graph and device.type != "cuda":
        raise ValueError(
            f"cuda_graph is on, but the device is {device}; it must be a CUDA device: turn it off"
            f" ({OFF})"
        )
    if cuda_graph and processes > 1:
        raise ValueError(
            f"cuda_graph is on, but there are {processes} processes; it works with one: turn it off"
            f" ({OFF})"
        )


def uses_graph(recipe: Recipe, model: nn.Module, device: torch.device, ranks: Ranks) -> bool:
    """Whether steps are a CUDA graph: as the recipe says or, if it does not, where that is safe.

    That is on one process and a CUDA device. A recording cannot recompute (``micro_batch``,
    ``checkpoint_blocks``) and does not call hooks. A compiled encoder is left as it is, and
    ``deterministic`` promises a resumed run the bits of kernels that run one by one.
    """
    if recipe.cuda_graph is not None:
        return recipe.cuda_graph
    if device.type != "cuda" or torch.version.cuda is None or ranks.group is not None:
        return False
    if recipe.micro_batch or recipe.checkpoint_blocks or recipe.compile or recipe.deterministic:
        return False
    return not has_hooks(*model.modules())


class StepGraph:
    """Calls ``step`` a few times, then records it and replays the recording.

    Args:
        step: work of the device alone: inputs -> values. What it reads besides the inputs must stay
            at the same addresses, and what it draws must come from torch's default generator.
        device: a CUDA device.

    Inputs of other shapes or types than those recorded are not replayed: ``step`` is called.
    Memory of a step stays allocated between steps.
    """

    def __init__(self, step: Callable[..., Tensor], device: torch.device) -> None:
        self._step, self._device = step, device
        self._calls = 0  # with inputs of these kinds
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []
        self._inputs: list[Tensor] = []
        self._values: Tensor | None = None
        self._replay: Callable[[], None] | None = None
        self._stream: torch.cuda.Stream | None = None  # of the warm-up

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The values of a step, in memory of their own.

        Raises:
            RuntimeError: the step cannot be recorded.
        """
        kinds = [(given.shape, given.dtype) for given in inputs]
        if self._replay is None:
            self._calls = self._calls + 1 if kinds == self._kinds else 1
            self._kinds = kinds
        if self._calls <= WARM_UP or kinds != self._kinds:
            if self._device.type == "cuda" and self._stream is None:
                self._stream = torch.cuda.Stream(self._device)
            return beside(lambda: self._step(*inputs), self._stream)
        if self._replay is None:
            self._record(inputs)
        for place, given in zip(self._inputs, inputs, strict=True):
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
                f" ({OFF})"
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
