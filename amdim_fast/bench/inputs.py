"""What is measured: AMDIM's six costs on random feature maps, by our loss and by the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.nce.losses import LossMultiNCE
from amdim_fast.nce.reference import multiscale_nce

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


def our_losses(inputs: Inputs) -> Sequence[Tensor]:
    """The three losses and the regularizer, by ``LossMultiNCE``."""
    return LossMultiNCE(tclip=CLIP)(*inputs.maps, locations=inputs.locations)


def reference_losses(inputs: Inputs) -> Sequence[Tensor]:
    """The same by the reference."""
    r1_x1, r5_x1, r7_x1, r1_x2, r5_x2, r7_x2 = inputs.maps
    views = (r1_x1, r5_x1, r7_x1), (r1_x2, r5_x2, r7_x2)
    return multiscale_nce(*views, inputs.locations, clip=CLIP)


def forward_backward(losses: Losses, inputs: Inputs) -> tuple[Tensor, ...]:
    """The four values and the gradients of the six maps; no gradient is accumulated."""
    values = tuple(losses(inputs))
    return (*values, *torch.autograd.grad(torch.stack(values).sum(), inputs.maps))
