"""A training whose loss is the reference's, for the providers that are compared with ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amdim_fast.nce.losses import MultiNCEObjective
from amdim_fast.nce.reference import multiscale_nce
from amdim_fast.training.recipes import Recipe
from amdim_fast.training.step import Training


def reference_loss(recipe: Recipe) -> Any:
    """What ``LossMultiNCE`` computes, by the reference; other options have no use there."""

    def forward(*maps: Tensor, locations: Any, **_: Any) -> tuple[Tensor, ...]:
        options = {"clip": recipe.tclip, "reg_weight": recipe.reg_weight}
        return multiscale_nce(maps[:3], maps[3:], locations, **options)  # type: ignore[arg-type]

    return forward


def use_reference(training: Training, *, compiled: bool = False) -> None:
    """Replace the training's loss by it; locations are those that the training draws."""
    loss, forward = training.model.g2l_loss, reference_loss(training.recipe)
    if compiled:
        forward = torch.compile(forward, dynamic=False)

    def objective(*maps: Tensor, **options: Any) -> MultiNCEObjective:
        values = forward(*maps, **options)
        return MultiNCEObjective(torch.stack(values).sum(), *values)

    loss.forward, loss.objective = forward, objective  # type: ignore[method-assign]
