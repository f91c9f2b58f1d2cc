"""The processes of one run, which torchrun starts.

They form two groups. The set-up's, in which one process may download while the others wait, uses
gloo with a long timeout. The steps' has the run's timeout and uses gloo for CPU tensors, NCCL for
CUDA tensors.
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

from amdim_fast.distributed.agreement import ErrorsOnAllRanks, any_rank

Value = TypeVar("Value")
PATIENCE = timedelta(days=1)
# Words in the transports' errors when a process is gone or silent.
_LOST_RANK_WORDS = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "timed out",
    "broken pipe",
)


class LostRank(ConnectionError):  # noqa: N818 - what happened
    """Another process of the run ended, or did not answer within the timeout."""


@dataclass(frozen=True)
class Ranks:
    """Place of this process among those of the run; by default it is the only one.

    Attributes:
        rank: 0 logs and saves.
        world_size: number of processes.
        local_rank: place among the processes of this machine.
        local_world_size: number of processes on this machine.
        group: the set-up's or, after ``for_steps``, the steps'; None for a single process.
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

    @property
    def group_name(self) -> str | None:
        """The name of ``group``, None without one."""
        return None if self.group is None else self.group.group_name

    def check_batch(self, batch_size: int) -> None:
        """Raise ValueError unless the processes can share a batch of this size."""
        if batch_size % self.world_size or batch_size < 2 * self.world_size:
            raise ValueError(
                f"batch_size is {batch_size}, of all processes together; it must be a multiple of"
                f" {self.world_size} that leaves each of them 2 images or more"
            )

    def device(self, name: str) -> str:
        """The device of this process in a run on ``name``: cuda becomes cuda:LOCAL_RANK.

        Raises:
            ValueError: there is no such GPU, or ``name`` would give all processes the same one.
        """
        device = torch.device(name)
        if self.group is None or device.type != "cuda":
            return name
        if device.index is not None:
            raise ValueError(
                f"device is {name!r}; with several processes it must be cuda, of which each process"
                " takes the GPU of its local rank"
            )
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local_rank is {self.local_rank}; it must be below the number of GPUs that torch"
                f" finds here, {torch.cuda.device_count()}: start as many processes on each machine"
            )
        return f"cuda:{self.local_rank}"

    def for_steps(self, device: str, timeout: float) -> Ranks:
        """The same processes with the steps' group, for tensors on ``device``."""
        if not self.owned:
            return self
        backend = "gloo"
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(torch.device(device))
            backend = "cpu:gloo,cuda:nccl"
        group = dist.new_group(backend=backend, timeout=timedelta(seconds=timeout))
        assert isinstance(group, dist.ProcessGroup)  # this process is one of its members
        return replace(self, group=group)

    def together(self) -> ErrorsOnAllRanks:
        """A context that all processes leave together; an error inside is raised on all."""
        return ErrorsOnAllRanks(self.group_name, together=True)

    def telling(self) -> ErrorsOnAllRanks:
        """A context; the others raise its error in their next ``together`` or ``any``."""
        return ErrorsOnAllRanks(self.group_name)

    def any(self, flag: bool) -> bool:
        """Whether any process has set its flag."""
        return flag if self.group_name is None else any_rank(self.group_name, flag)

    def shared(self, value: Value) -> Value:
        """The value of the first process."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def check_equal(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError on every process unless all have equal facts."""
        if self.group is None:
            return
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, dict(facts), group=self.group)
        for rank, other in enumerate(found):
            for name, value in found[0].items():
                if other[name] != value:
                    raise ValueError(
                        f"{name} is {value} on rank 0 and {other[name]} on rank {rank}; it must be"
                        " the same on all: give them the same files"
                    )

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place; a single process leaves the tensor unchanged."""
        if self.group is not None:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes, in one all-reduce."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.group is None or not grads:
            return
        flat = self.sum(torch.cat([grad.flatten() for grad in grads])).div_(self.world_size)
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def close(self) -> None:
        """End the groups if ``joined`` started them; each process may then finish alone."""
        if self.owned and dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, or the caller's default group, or this process alone.

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
        # Destroying an NCCL group could wait for a process that is gone; exiting does not.
        if not torch.cuda.is_initialized():
            ranks.close()
        if is_lost_rank(error):
            raise LostRank(
                f"rank {rank} of {world_size} lost another process ({reason(error)}); see that"
                " process's log"
            ) from error
        raise
    ranks.close()


def rank_of_environment() -> int:
    """The rank that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def is_lost_rank(error: BaseException) -> bool:
    """Whether the transport says that another process is gone or silent."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _LOST_RANK_WORDS)
    )


def reason(error: BaseException) -> str:
    """The transport's message, without its source location."""
    return re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0]).split(". ")[0].rstrip(".")
