"""One call of the contrastive op: its groups, how each is computed, and what is packed where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor

from amdim_fast.nce import torch_backend as nce_torch
from amdim_fast.nce.backend import resolve_backend
from amdim_fast.nce.plan import GroupPlan, Plan, padded, plan_groups, record_plan
from amdim_fast.nce.products import product_library

NO_PICK = -1


class Call:
    """Arguments of ``amdim_fast::nce_forward``, and what follows from their shapes.

    A group is one set of targets [N, L, D] with sources [S, B, D] stacked against them; the source
    a group picks from the targets of another is its last set. N = B, but for a rank's own targets.
    """

    def __init__(
        self,
        srcs: Sequence[Tensor],
        trgs: Sequence[Tensor],
        picks: Sequence[Tensor],
        pick_from: Sequence[int],
        clip: float | None,
        same_location: bool,
        backend: str,
        memory_budget: int,
        with_grad: bool,
    ) -> None:
        self.srcs, self.trgs, self.picks, self.pick_from = srcs, trgs, picks, pick_from
        self.clip, self.same_location = clip, same_location
        self.backend = resolve_backend(backend, srcs[0].dtype, srcs[0].device)
        self.memory_budget, self.with_grad = memory_budget, with_grad
        self.dtype = nce_torch.compute_dtype(srcs[0].dtype)

    @property
    def implementation(self) -> ModuleType:
        """Module with the forward and backward of one group; loads triton only if it is used."""
        if self.backend == "torch":
            return nce_torch
        from amdim_fast.nce import triton_backend as nce_triton

        return nce_triton

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(S, B, L) of each group, the picked set included."""
        return [
            (src.shape[0] + int(origin != NO_PICK), src.shape[1], trg.shape[1])
            for src, trg, origin in zip(self.srcs, self.trgs, self.pick_from, strict=True)
        ]

    @property
    def score_sizes(self) -> list[int]:
        """Own scores of each group, S * B * L."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def sum_sizes(self) -> list[int]:
        """Log-sums of each group: one a row, or one a row and location."""
        return [
            sets * images * (locations if self.same_location else 1)
            for sets, images, locations in self.shapes
        ]

    @property
    def sets(self) -> list[int]:
        """S of each group."""
        return [shape[0] for shape in self.shapes]

    @property
    def targets(self) -> list[int]:
        """N of each group."""
        return [trg.shape[0] for trg in self.trgs]

    @cached_property
    def plans(self) -> tuple[GroupPlan, ...]:
        """Block size of each group, and whether its scores are kept."""
        src = self.srcs[0]
        return plan_groups(
            [
                (sets * images, targets, locations)
                for (sets, images, locations), targets in zip(
                    self.shapes, self.targets, strict=True
                )
            ],
            self.implementation.work_rule(src.dtype, src.device, src.shape[-1], self.same_location),
            memory_budget=self.memory_budget,
            with_grad=self.with_grad,
        )

    def kept_shapes(self, index: int) -> list[tuple[int, ...]]:
        """What group ``index`` keeps: padded rows for all blocks, or a flat tensor a block."""
        plan, (sets, images, locations) = self.plans[index], self.shapes[index]
        targets = self.targets[index]
        if plan.mode != "keep":
            return []
        if self.backend == "triton":
            return [(sets, images, padded(targets * locations))]
        starts = range(0, targets, plan.block_images)
        counts = [min(plan.block_images, targets - start) for start in starts]
        return [(sets * images * count * locations,) for count in counts]

    def picked(self) -> list[Tensor | None]:
        """[1, B, D] source that each group picks, or None."""
        location = iter(self.picks)
        return [
            None if origin == NO_PICK else _pick(self.trgs[origin], next(location))[None]
            for origin in self.pick_from
        ]

    def stacked(self, dtype: torch.dtype) -> list[Tensor]:
        """Sources of each group, the picked ones below the given ones."""
        return [
            (src if extra is None else torch.cat([src.to(dtype), extra.to(dtype)]))
            .to(dtype)
            .contiguous()
            for src, extra in zip(self.srcs, self.picked(), strict=True)
        ]

    def groups(self) -> list[nce_torch.Group]:
        """Inputs of each group."""
        stacks = self.stacked(self.srcs[0].dtype if self.backend == "triton" else self.dtype)
        return [
            nce_torch.Group(stack, trg, self.clip, self.same_location, plan)
            for stack, trg, plan in zip(stacks, self.trgs, self.plans, strict=True)
        ]

    def of_all_ranks(self, srcs: Sequence[Tensor]) -> Call:
        """The call with the stacked sources of every rank against the targets of this one."""
        alone = [NO_PICK] * len(srcs)
        settings = self.clip, self.same_location, self.backend, self.memory_budget, self.with_grad
        return Call(srcs, self.trgs, (), alone, *settings)

    def total_grad_log_prob(
        self, index: int, of_loss: Tensor | None, of_log_prob: Tensor | None
    ) -> Tensor | None:
        """Gradient of log_prob [S, B, L]: its own, and its share in ``loss = -mean(log_prob)``."""
        shape = self.shapes[index]
        total = None if of_log_prob is None else of_log_prob.reshape(shape)
        if of_loss is not None:
            share = (of_loss / -(shape[1] * shape[2])).view(-1, 1, 1).expand(shape)
            total = share if total is None else total + share
        return total

    def describe_kernels(self, groups: Sequence[nce_torch.Group]) -> tuple[str, ...]:
        """How the Triton kernels of each group get their products; empty for torch."""
        if self.backend == "torch":
            return ()
        return tuple(self.implementation.describe(group) for group in groups)

    def add_picked(
        self, grad_srcs: Sequence[Tensor | None], grad_trgs: Sequence[Tensor | None]
    ) -> None:
        """Add the gradient of each picked source to the targets it came from; one row an image."""
        location = iter(self.picks)
        for origin, grad_src in zip(self.pick_from, grad_srcs, strict=True):
            if origin == NO_PICK:
                continue
            index = next(location)
            grad_trg = grad_trgs[origin]
            if grad_trg is not None and grad_src is not None:
                rows = torch.arange(grad_trg.shape[0], device=grad_trg.device)
                grad_trg[rows, index] = (grad_trg[rows, index] + grad_src[-1]).to(grad_trg.dtype)


def log_prob_of(pos: Tensor, neg: Tensor) -> Tensor:
    """Log-probability of own scores [S, B, L] beside negatives [S, B, 1] or [S, B, L]."""
    return -torch.logaddexp(neg - pos, torch.zeros_like(pos))


def record(call: Call, groups: Sequence[nce_torch.Group]) -> None:
    """Let ``last_plan`` tell how the call was computed."""
    library = product_library(groups[0].src, call.backend)
    kernels = call.describe_kernels(groups)
    record_plan(Plan(call.backend, library, call.plans, call.memory_budget, kernels))


def _pick(trg: Tensor, location: Tensor) -> Tensor:
    """[B, D] targets at one location an image; on a GPU an index out of range is an assertion."""
    count = trg.shape[1]
    if location.device.type == "cpu" and not ((location >= 0) & (location < count)).all():
        raise ValueError(
            f"locations has an entry outside 0..{count - 1}; each must be a place in the map"
        )
    return trg[torch.arange(trg.shape[0], device=trg.device), location]
