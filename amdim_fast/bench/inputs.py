"""What is measured: AMDIM's six costs on random feature maps, by our loss and by the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from amdim_fast.nce.layout import layout_of
from amdim_fast.nce.losses import PICK_FROM, LossMultiNCE, MultiNCEObjective
from amdim_fast.nce.pairing import Options
from amdim_fast.nce.reference import multiscale_nce
from amdim_fast.nce.wiring import Wiring

CLIP = 10.0
MAP_SIDES = (1, 5, 7)


class Inputs(NamedTuple):
    """Maps (r1, r5, r7) of two views, channels_last, and a 5x5 location of each image and view."""

    maps: tuple[Tensor, ...]
    locations: tuple[Tensor, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the maps, and so of their gradients."""
        return sum(features.nbytes for features in self.maps)

    def double(self) -> Inputs:
        """The same in float64."""
        maps = (features.detach().double().requires_grad_() for features in self.maps)
        return Inputs(tuple(maps), self.locations)


# The three losses and the regularizer; a MultiNCEObjective has their sum before them.
Losses = Callable[[Inputs], Sequence[Tensor]]


def make_inputs(
    images: int,
    dim: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Standard normal features, the same at each call: scores are well inside the clip."""
    generator = torch.Generator(device).manual_seed(0)
    maps = tuple(
        torch.randn((images, side, side, dim), generator=generator, device=device, dtype=dtype)
        .permute(0, 3, 1, 2)
        .requires_grad_()
        for side in 2 * MAP_SIDES
    )
    first, second = (
        torch.randint(0, MAP_SIDES[1] ** 2, (images,), generator=generator, device=device)
        for _ in range(2)
    )
    return Inputs(maps, (first, second))


def our_losses(*, objective: bool = True, **options: Any) -> Losses:
    """``LossMultiNCE``: its ``objective``, as pre-training calls it, or the general call."""
    module = LossMultiNCE(tclip=CLIP, **options)
    call = module.objective if objective else module
    return lambda inputs: call(*inputs.maps, locations=inputs.locations)


def reference_losses(inputs: Inputs) -> Sequence[Tensor]:
    """The four values by the reference."""
    r1_x1, r5_x1, r7_x1, r1_x2, r5_x2, r7_x2 = inputs.maps
    views = (r1_x1, r5_x1, r7_x1), (r1_x2, r5_x2, r7_x2)
    return multiscale_nce(*views, inputs.locations, clip=CLIP)


def forward(losses: Losses, inputs: Inputs) -> tuple[Tensor, ...]:
    """The four values, without gradients."""
    with torch.no_grad():
        return tuple(losses(inputs)[-4:])


def forward_backward(losses: Losses, inputs: Inputs) -> tuple[Tensor, ...]:
    """The four values and the gradients of the six maps; no gradient is accumulated."""
    found = losses(inputs)
    made = isinstance(found, MultiNCEObjective)
    objective = found[0] if made else torch.stack(tuple(found)).sum()
    return (*found[-4:], *torch.autograd.grad(objective, inputs.maps))


def planned_bytes(images: int, dim: int, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes that the plan of our objective has beside features and gradients, at the most."""
    with FakeTensorMode():
        src, five, seven = (
            torch.empty(shape, device=device, dtype=dtype)
            for shape in ((1, images, dim), *((images, side**2, dim) for side in MAP_SIDES[1:]))
        )
    srcs, trgs = [src, src], [five, seven, five, seven]
    wiring = Wiring((0, 0, 1, 1), PICK_FROM, (True,) * 6, len(srcs))
    options = Options(CLIP, False, False, parts=3, loss_weight=1.0, mean_sq_weight=1.0)
    layout = layout_of(
        srcs, trgs, wiring, options, backend="auto", memory_budget=None, one_pass=True
    )
    return layout.plan.peak_bytes
