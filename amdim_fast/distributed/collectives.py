"""The contrastive op's collectives, over rows of images; sums run in the order of the ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

# One function, renamed in torch 2.14.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Pending(NamedTuple):
    """A collective under way; what it reads and writes stays alive with it."""

    sent: Tensor
    received: Tensor
    work: dist.Work | None

    def wait(self) -> Tensor:
        """[W, ...], one part per rank."""
        if self.work is not None:
            self.work.wait()
        return self.received


def start_gather(part: Tensor, group: dist.ProcessGroup) -> Pending:
    """Send ``part`` to every rank."""
    part = part.contiguous()
    received = part.new_empty((group.size(), *part.shape))
    work = _gather(received.view(-1), part.view(-1), group=group, async_op=True)
    return Pending(part, received, work)


def start_exchange(parts: Tensor, group: dist.ProcessGroup) -> Pending:
    """Send part r of [W, ...] to rank r; summing what is received makes it a reduce-scatter."""
    parts = parts.contiguous()
    received = parts.new_empty(parts.shape)
    work = dist.all_to_all_single(received.view(-1), parts.view(-1), group=group, async_op=True)
    return Pending(parts, received, work)


def join_rows(parts: Tensor) -> Tensor:
    """[W, S, B, X] of the ranks -> [S, W * B, X], rank after rank."""
    return parts.transpose(0, 1).flatten(1, 2)


def split_rows(rows: Tensor, world: int) -> Tensor:
    """[S, W * B, X] -> [W, S, B, X]."""
    return rows.unflatten(1, (world, -1)).transpose(0, 1)
