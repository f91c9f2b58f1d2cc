"""One call of the contrastive op: its groups, how each is computed, and what is packed where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor

from amdim_fast.ops import nce_torch
from amdim_fast.ops.backend import resolve_backend
from amdim_fast.ops.plan import GroupPlan, padded, plan_groups

NO_PICK = -1


class Call:
    """Arguments of ``amdim_fast::nce_forward``, and what follows from their shapes.

    A group is one set of targets [B, L, D] with sources [S, B, D] stacked against them; the source
    a group picks from the targets of another is its last set.
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
        from amdim_fast.ops import nce_triton

        return nce_triton

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(S, B, L) of each group, the picked set included."""
        return [
            (src.shape[0] + (origin != NO_PICK), src.shape[1], trg.shape[1])
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

    @cached_property
    def plans(self) -> tuple[GroupPlan, ...]:
        """Block size of each group, and whether its scores are kept."""
        src = self.srcs[0]
        return plan_groups(
            [(sets * images, images, locations) for sets, images, locations in self.shapes],
            self.implementation.work_rule(src.dtype, src.device, src.shape[-1], self.same_location),
            memory_budget=self.memory_budget,
            with_grad=self.with_grad,
        )

    def kept_shapes(self, index: int) -> list[tuple[int, ...]]:
        """What group ``index`` keeps: padded rows for all blocks, or a flat tensor a block."""
        plan, (sets, images, locations) = self.plans[index], self.shapes[index]
        if plan.mode != "keep":
            return []
        if self.backend == "triton":
            return [(sets, images, padded(images * locations))]
        starts = range(0, images, plan.block_images)
        counts = [min(plan.block_images, images - start) for start in starts]
        return [(sets * images * count * locations,) for count in counts]

    def groups(self) -> list[nce_torch.Group]:
        """Inputs of each group, the picked sources stacked below the given ones."""
        dtype = self.srcs[0].dtype if self.backend == "triton" else self.dtype
        location = iter(self.picks)
        groups = []
        for src, trg, origin, plan in zip(
            self.srcs, self.trgs, self.pick_from, self.plans, strict=True
        ):
            stacked = src.to(dtype)
            if origin != NO_PICK:
                picked = _pick(self.trgs[origin], next(location))
                stacked = torch.cat([stacked, picked[None].to(dtype)])
            groups.append(
                nce_torch.Group(stacked.contiguous(), trg, self.clip, self.same_location, plan)
            )
        return groups

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


def _pick(trg: Tensor, location: Tensor) -> Tensor:
    """[B, D] targets at one location an image; on a GPU an index out of range is an assertion."""
    count = trg.shape[1]
    if location.device.type == "cpu" and not ((location >= 0) & (location < count)).all():
        raise ValueError(
            f"locations has an entry outside 0..{count - 1}; each must be a place in the map"
        )
    return trg[torch.arange(trg.shape[0], device=trg.device), location]
