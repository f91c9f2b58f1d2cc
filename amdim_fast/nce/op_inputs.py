"""What the contrastive ops take, and where the gradients of it lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amdim_fast.nce.clip import clip_value
from amdim_fast.nce.feature_maps import locations_inside
from amdim_fast.nce.inputs import check_clip, check_weight
from amdim_fast.nce.layout import Layout, layout_of
from amdim_fast.nce.pairing import Options
from amdim_fast.nce.sizes import Sizes, sizes_of
from amdim_fast.nce.wiring import NO_ORIGIN, Wiring

# Gradients of a call lie in one tensor and start at multiples of this many entries.
GRADIENT_UNIT = 128


class Inputs(NamedTuple):
    """What the ops share, in the order of their schemas.

    Attributes:
        srcs: given sources [S, B, D], each once.
        trgs: targets [B, L, D] of each pairing.
        picks: int64 [B] for each pairing with drawn sources: one location per image.
        src_of: which of ``srcs`` each pairing has.
        pick_from: for each pairing, the one whose targets its drawn sources come from, or
            NO_ORIGIN; drawn sources are the pairing's last set.
        clip: bound on |score| in nats, or None.
        same_location: whether negatives are taken at the same location only.
        parts: set s counts in total ``s % parts``.
        loss_weight: weight of each loss in the totals.
        mean_sq_weight: weight of each mean of raw^2 in the last total.
        backend: "auto", "torch" or "triton"; "auto" is resolved by the tensors' device.
        precision: of products of float32 features: "auto" or "limbs".
        memory_budget: byte limit for score-shaped memory, or None for the default.
    """

    srcs: list[Tensor]
    trgs: list[Tensor]
    picks: list[Tensor]
    src_of: list[int]
    pick_from: list[int]
    clip: float | None
    same_location: bool
    parts: int
    loss_weight: float
    mean_sq_weight: float
    backend: str
    precision: str
    memory_budget: int | None

    def with_numbers(self, numbers: Tensor | None) -> Inputs:
        """With the clip and the weight of mean_sq that a graph has worked out, float64 [2]."""
        if numbers is None:
            return self
        clip, weight = numbers.tolist()
        check_clip("clip", clip)
        check_weight("mean_sq_weight", weight)
        return self._replace(clip=clip_value(clip), mean_sq_weight=weight)

    def wiring(self, needs: Sequence[bool]) -> Wiring:
        """Who meets whom; ``needs`` says which of srcs and trgs want gradients."""
        return Wiring(tuple(self.src_of), tuple(self.pick_from), tuple(needs), len(self.srcs))

    def sizes(self, *, needs: Sequence[bool], world_size: int = 1) -> Sizes:
        """Sizes, without a plan."""
        return sizes_of(
            self.srcs,
            self.trgs,
            self.wiring(needs),
            same_location=self.same_location,
            world_size=world_size,
        )

    def layout(
        self,
        *,
        one_pass: bool,
        needs: Sequence[bool],
        world_size: int = 1,
        keep: int | None = None,
    ) -> Layout:
        """Shapes, places and plan."""
        return layout_of(
            self.srcs,
            self.trgs,
            self.wiring(needs),
            Options(
                clip=self.clip,
                same_location=self.same_location,
                limbs=self.precision == "limbs" and self.srcs[0].dtype == torch.float32,
                parts=self.parts,
                loss_weight=self.loss_weight,
                mean_sq_weight=self.mean_sq_weight,
            ),
            backend=self.backend,
            memory_budget=self.memory_budget,
            one_pass=one_pass,
            world_size=world_size,
            keep=keep,
        )

    def drawn(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """Targets that the drawn sources of a pairing come from, and where; None without any."""
        origin = self.pick_from[index]
        if origin == NO_ORIGIN:
            return None, None
        place = sum(other != NO_ORIGIN for other in self.pick_from[:index])
        return self.trgs[origin], locations_inside(self.picks[place], self.trgs[origin])


def read(arguments: tuple[Any, ...], count: int) -> tuple[Inputs, tuple[Any, ...]]:
    """Inputs, and the ``count`` arguments after them; the dispatcher leaves out a last None."""
    known = len(Inputs._fields)
    rest = arguments[known:]
    return Inputs(*arguments[:known]), rest + (None,) * (count - len(rest))


class Gradients(NamedTuple):
    """Gradients of srcs and trgs, None where they are not wanted."""

    srcs: list[Tensor | None]
    trgs: list[Tensor | None]

    def wanted(self) -> list[Tensor]:
        """Those that are wanted, in order."""
        return [grad for grad in (*self.srcs, *self.trgs) if grad is not None]


def new_gradients(inputs: Inputs, needs: Sequence[bool]) -> Gradients:
    """Room for the gradients."""
    found = [
        tensor.new_empty(tensor.shape) if need else None
        for tensor, need in zip((*inputs.srcs, *inputs.trgs), needs, strict=True)
    ]
    return Gradients(found[: len(inputs.srcs)], found[len(inputs.srcs) :])


def new_flat(inputs: Inputs, needs: Sequence[bool]) -> Tensor:
    """Room for all gradients of the objective; float32 for float16, whose range they may leave."""
    src = inputs.srcs[0]
    wanted = zip((*inputs.srcs, *inputs.trgs), needs, strict=True)
    size = sum(_place_size(tensor) for tensor, need in wanted if need)
    return src.new_empty(size, dtype=torch.float32 if src.dtype == torch.float16 else src.dtype)


def _place_size(tensor: Tensor) -> int:
    """Entries from the gradient of a tensor to the next one."""
    return -(-tensor.numel() // GRADIENT_UNIT) * GRADIENT_UNIT


def split_flat(inputs: Inputs, needs: Sequence[bool], flat: Tensor) -> Gradients:
    """Views of the gradients in ``flat``."""
    found: list[Tensor | None] = []
    start = 0
    for tensor, need in zip((*inputs.srcs, *inputs.trgs), needs, strict=True):
        if need:
            shape = tensor.shape
            strides = (shape[1] * shape[2], shape[2], 1)
            found.append(flat.as_strided(shape, strides, start))
            start += _place_size(tensor)
        else:
            found.append(None)
    return Gradients(found[: len(inputs.srcs)], found[len(inputs.srcs) :])
