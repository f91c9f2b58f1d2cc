"""The processes of one run: torchrun starts them, they agree on errors and on when to stop.

Every process has two groups. Setting up, where one may download and the others wait, uses gloo with
a long timeout; steps use gloo for CPU tensors and NCCL for CUDA's, with the timeout of the run.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from amdim_fast.data.workers import worker_count

Value = TypeVar("Value")
PATIENCE = timedelta(days=1)
# How the transports word it that a process is gone or silent.
_LOSSES = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "broken pipe")


class LostRank(ConnectionError):  # noqa: N818 - what happened
    """Another process of the run ended, or did not answer within the timeout."""


@dataclass(frozen=True)
class Ranks:
    """Place of this process among those of the run; by default it is the only one.

    Attributes:
        rank: 0 logs and saves.
        world_size: number of processes.
        local_rank: place among those of this machine.
        local_world_size: how many those are.
        group: of the steps; None where the process is alone.
        owned: whether ``joined`` started the groups.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    group: dist.ProcessGroup | None = None
    owned: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process logs and saves."""
        return self.rank == 0

    def check_batch(self, batch_size: int) -> None:
        """Raise ValueError unless the processes can share a batch."""
        if batch_size % self.world_size or batch_size < 2 * self.world_size:
            raise ValueError(
                f"batch_size is {batch_size}, of all processes together; {self.world_size} cannot"
                f" share it: take a multiple of {self.world_size} that leaves each 2 or more"
            )

    def device(self, name: str) -> str:
        """The device of this process where the run's is ``name``: cuda is cuda:LOCAL_RANK.

        Raises:
            ValueError: there is no such GPU, or ``name`` would give all processes the same one.
        """
        device = torch.device(name)
        if self.group is None or device.type != "cuda":
            return name
        if device.index is not None:
            raise ValueError(
                f"device is {name!r}; with several processes give cuda, and each takes the GPU of"
                " its local rank"
            )
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {self.local_rank} has no GPU, torch finds"
                f" {torch.cuda.device_count()} here; start as many processes a machine"
            )
        return f"cuda:{self.local_rank}"

    def workers(self, workers: int | None) -> int:
        """As given; None is this process's share of the machine's CPUs."""
        if workers is not None or self.group is None:
            return worker_count(workers)
        return max(1, worker_count(None) // self.local_world_size)

    def for_steps(self, device: str, timeout: float) -> Ranks:
        """With the group of the steps, on a device of ``device``."""
        if not self.owned:
            return self
        backend = "gloo"
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(torch.device(device))
            backend = "cpu:gloo,cuda:nccl"
        group = dist.new_group(backend=backend, timeout=timedelta(seconds=timeout))
        assert isinstance(group, dist.ProcessGroup)  # this process is one of its members
        return replace(self, group=group)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Leave together: an error inside is raised, with the same sentence, on every process."""
        try:
            yield
        except Exception as error:
            if self.group is None or isinstance(error, LostRank):
                raise
            self._exchange(error)
        else:
            if self.group is not None:
                self._exchange(None)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """An error inside is raised on every process, when the others get to ``together``."""
        try:
            yield
        except Exception as error:
            if self.group is None:
                raise
            self._exchange(error)

    def any(self, flag: bool) -> bool:
        """Whether the flag of any process is set."""
        return self._exchange(None, flag) if self.group is not None else flag

    def _exchange(self, error: Exception | None, flag: bool = False) -> bool:
        """Whether any flag is set; raises the error of the lowest rank that has one."""
        flags = torch.tensor([error is not None, flag], dtype=torch.int32)
        try:
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        except RuntimeError:
            if error is not None:
                raise error from None
            raise
        if flags[0]:
            found: list[Any] = [None] * self.world_size
            own = None if error is None else (type(error), str(error))
            dist.all_gather_object(found, own, group=self.group)
            rank, (kind, sentence) = next((r, e) for r, e in enumerate(found) if e is not None)
            if any(other != found[rank] for other in found):
                sentence = f"rank {rank}: {sentence}"
            elif error is not None:
                raise error
            raise _made(kind, sentence) from error
        return bool(flags[1])

    def shared(self, value: Value) -> Value:
        """The value of the first process."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def check_equal(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError, on every process, unless all have equal facts."""
        if self.group is None:
            return
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, dict(facts), group=self.group)
        for rank, other in enumerate(found):
            for name, value in found[0].items():
                if other[name] != value:
                    raise ValueError(
                        f"{name}: {value} on rank 0, but {other[name]} on rank {rank}; give all"
                        " processes the same files"
                    )

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place; as it is where the process is alone."""
        if self.group is not None:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Give each parameter the mean over the processes of its gradients, in one all-reduce."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.group is None or not grads:
            return
        flat = self.sum(torch.cat([grad.flatten() for grad in grads])).div_(self.world_size)
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def close(self) -> None:
        """End the groups, if ``joined`` started them; the others may go on to their end alone."""
        if self.owned and dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, or a caller's default group, or this process alone.

    Raises:
        ValueError: torchrun's environment is incomplete. LostRank: another process is gone.
    """
    started = dist.is_initialized()
    if not started and "WORLD_SIZE" not in os.environ:
        yield Ranks()
        return
    if not started:
        dist.init_process_group("gloo", timeout=PATIENCE)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(
        rank,
        world_size,
        int(os.environ.get("LOCAL_RANK", rank)),
        int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
        dist.group.WORLD,
        owned=not started,
    )
    try:
        yield ranks
    except BaseException as error:
        # Ending a group of NCCL could wait for a process that is gone; leaving does not.
        if not torch.cuda.is_initialized():
            ranks.close()
        if is_loss(error):
            raise LostRank(
                f"rank {rank} of {world_size} lost another process ({reason(error)}); its own"
                " words say why"
            ) from error
        raise
    ranks.close()


def rank_of_environment() -> int:
    """The rank that torchrun gave this process, 0 where it did not."""
    return int(os.environ.get("RANK", 0))


def is_loss(error: BaseException) -> bool:
    """Whether the transport says that another process is gone or silent."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _LOSSES)
    )


def reason(error: BaseException) -> str:
    """What the transport said, without its place in the source."""
    return re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0]).split(". ")[0].rstrip(".")


def _made(kind: type[Exception], sentence: str) -> Exception:
    try:
        return kind(sentence)
    except TypeError:
        return RuntimeError(sentence)
