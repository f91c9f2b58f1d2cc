"""One call of the contrastive op: its pairings, how each is computed, and what is packed where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.nce import torch_backend
from amdim_fast.nce.backend import resolve_backend
from amdim_fast.nce.feature_maps import features_at
from amdim_fast.nce.plan import PairingPlan, Plan, padded, plan_pairings, record_plan
from amdim_fast.nce.products import product_library

NO_ORIGIN = -1


class Settings(NamedTuple):
    """Options of a call, in the order of the op schemas.

    Attributes:
        origins: for each pairing, the pairing whose targets its drawn sources come from, or
            NO_ORIGIN; ``pick_from`` in the schemas.
        clip: bound on |score| in nats, or None.
        same_location: whether negatives are taken at the same location only.
        backend: "auto", "torch" or "triton".
        memory_budget: bytes for blocks of scores and kept scores.
    """

    origins: Sequence[int]
    clip: float | None
    same_location: bool
    backend: str
    memory_budget: int


class Call:
    """Inputs of ``amdim_fast::nce_forward``, and what follows from their shapes.

    A pairing is one set of targets [N, L, D] with the sources [S, B, D] stacked against them. Its
    last source set may be drawn: one location per image of the targets of another pairing, its
    origin. N = B, unless the sources are those of all ranks.

    Args:
        srcs: given sources of each pairing, [S, B, D].
        trgs: targets of each pairing.
        locations: int64 [B] for each pairing with drawn sources; ``picks`` in the schemas.
        settings: options.
        with_grad: whether a backward will follow.
    """

    def __init__(
        self,
        srcs: Sequence[Tensor],
        trgs: Sequence[Tensor],
        locations: Sequence[Tensor],
        settings: Settings,
        *,
        with_grad: bool,
    ) -> None:
        self.srcs, self.trgs, self.locations = srcs, trgs, locations
        self.settings, self.with_grad = settings, with_grad
        self.origins, self.same_location = settings.origins, settings.same_location
        self.backend = resolve_backend(settings.backend, srcs[0].dtype, srcs[0].device)
        self.dtype = torch_backend.compute_dtype(srcs[0].dtype)

    @property
    def implementation(self) -> ModuleType:
        """Module with the forward and backward of one pairing; loads triton only if it is used."""
        if self.backend == "torch":
            return torch_backend
        from amdim_fast.nce import triton_backend

        return triton_backend

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(S, B, L) of each pairing, the drawn set included in S."""
        return [
            (src.shape[0] + int(origin != NO_ORIGIN), src.shape[1], trg.shape[1])
            for src, trg, origin in zip(self.srcs, self.trgs, self.origins, strict=True)
        ]

    @cached_property
    def sum_shapes(self) -> list[tuple[int, int, int]]:
        """Shape of the log-sums of each pairing: [S, B, 1], or [S, B, L] for same_location."""
        return [
            (sets, images, n_locations if self.same_location else 1)
            for sets, images, n_locations in self.shapes
        ]

    @property
    def score_sizes(self) -> list[int]:
        """Number of own scores of each pairing, S * B * L."""
        return list(map(math.prod, self.shapes))

    @property
    def sum_sizes(self) -> list[int]:
        """Number of log-sums of each pairing."""
        return list(map(math.prod, self.sum_shapes))

    @property
    def sets(self) -> list[int]:
        """S of each pairing."""
        return [shape[0] for shape in self.shapes]

    @property
    def targets(self) -> list[int]:
        """N of each pairing."""
        return [trg.shape[0] for trg in self.trgs]

    @cached_property
    def plans(self) -> tuple[PairingPlan, ...]:
        """Block size of each pairing, and whether its scores are kept."""
        src = self.srcs[0]
        return plan_pairings(
            [
                (sets * images, targets, n_locations)
                for (sets, images, n_locations), targets in zip(
                    self.shapes, self.targets, strict=True
                )
            ],
            self.implementation.work_rule(src.dtype, src.device, src.shape[-1], self.same_location),
            memory_budget=self.settings.memory_budget,
            with_grad=self.with_grad,
        )

    def kept_shapes(self, index: int) -> list[tuple[int, ...]]:
        """What pairing ``index`` keeps: padded rows of all blocks, or one flat tensor per block."""
        plan, (sets, images, n_locations) = self.plans[index], self.shapes[index]
        targets = self.targets[index]
        if plan.mode != "keep":
            return []
        if self.backend == "triton":
            return [(sets, images, padded(targets * n_locations))]
        starts = range(0, targets, plan.block_images)
        counts = [min(plan.block_images, targets - start) for start in starts]
        return [(sets * images * count * n_locations,) for count in counts]

    def drawn_sources(self) -> list[Tensor | None]:
        """[1, B, D] drawn sources of each pairing, or None."""
        locations = iter(self.locations)
        return [
            None
            if origin == NO_ORIGIN
            else features_at(self.trgs[origin], _inside(next(locations), self.trgs[origin]))[None]
            for origin in self.origins
        ]

    def stacked(self, dtype: torch.dtype) -> list[Tensor]:
        """Sources of each pairing, the drawn ones after the given ones."""
        return [
            (src if drawn is None else torch.cat([src.to(dtype), drawn.to(dtype)]))
            .to(dtype)
            .contiguous()
            for src, drawn in zip(self.srcs, self.drawn_sources(), strict=True)
        ]

    def pairings(self) -> list[torch_backend.Pairing]:
        """Inputs of each pairing."""
        stacks = self.stacked(self.srcs[0].dtype if self.backend == "triton" else self.dtype)
        return [
            torch_backend.Pairing(stack, trg, self.settings.clip, self.same_location, plan)
            for stack, trg, plan in zip(stacks, self.trgs, self.plans, strict=True)
        ]

    def of_all_ranks(self, srcs: Sequence[Tensor]) -> Call:
        """The call with the stacked sources of every rank against this rank's targets."""
        settings = self.settings._replace(origins=[NO_ORIGIN] * len(srcs), backend=self.backend)
        return Call(srcs, self.trgs, (), settings, with_grad=self.with_grad)

    def total_grad_log_prob(
        self, index: int, of_loss: Tensor | None, of_log_prob: Tensor | None
    ) -> Tensor | None:
        """Gradient of log_prob [S, B, L]: its own, plus that through ``loss = -mean(log_prob)``."""
        shape = self.shapes[index]
        total = None if of_log_prob is None else of_log_prob.reshape(shape)
        if of_loss is not None:
            share = (of_loss / -(shape[1] * shape[2])).view(-1, 1, 1).expand(shape)
            total = share if total is None else total + share
        return total

    def describe_kernels(self, pairings: Sequence[torch_backend.Pairing]) -> tuple[str, ...]:
        """How the Triton kernels of each pairing get their products; empty for torch."""
        if self.backend == "torch":
            return ()
        return tuple(self.implementation.describe(pairing) for pairing in pairings)

    def add_drawn(
        self, grad_srcs: Sequence[Tensor | None], grad_trgs: Sequence[Tensor | None]
    ) -> None:
        """Add the gradients of drawn sources to the targets they came from, one row per image."""
        locations = iter(self.locations)
        for origin, grad_src in zip(self.origins, grad_srcs, strict=True):
            if origin == NO_ORIGIN:
                continue
            column = next(locations)
            grad_trg = grad_trgs[origin]
            if grad_trg is not None and grad_src is not None:
                rows = torch.arange(grad_trg.shape[0], device=grad_trg.device)
                grad_trg[rows, column] = (grad_trg[rows, column] + grad_src[-1]).to(grad_trg.dtype)


def log_prob_of(score: Tensor, neg: Tensor) -> Tensor:
    """Log-probability, from own scores [S, B, L] and log-sums [S, B, 1] or [S, B, L]."""
    return -torch.logaddexp(neg - score, torch.zeros_like(score))


def record(call: Call, pairings: Sequence[torch_backend.Pairing]) -> None:
    """Make this call's plan the one that ``last_plan`` returns."""
    library = product_library(pairings[0].src, call.backend)
    kernels = call.describe_kernels(pairings)
    record_plan(Plan(call.backend, library, call.plans, call.settings.memory_budget, kernels))


def _inside(locations: Tensor, trg: Tensor) -> Tensor:
    """The locations, if they lie in trg [B, L, D]; on a GPU the indexing itself asserts that."""
    count = trg.shape[1]
    if locations.device.type == "cpu" and not ((locations >= 0) & (locations < count)).all():
        raise ValueError(
            f"locations has an entry outside 0..{count - 1}; each must be the index of a location"
        )
    return locations
