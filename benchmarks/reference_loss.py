"""A training whose loss is the reference's, for the providers that are compared with ours."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amdim_fast.nce.reference import multiscale_nce
from amdim_fast.training.recipes import Recipe
from amdim_fast.training.step import Training


def reference_loss(recipe: Recipe) -> Any:
    """What ``LossMultiNCE`` computes, by the reference; other options have no use there."""

    def forward(*maps: Tensor, locations: Any, **_: Any) -> tuple[Tensor, ...]:
        options = {"clip": recipe.tclip, "reg_weight": recipe.reg_weight}
        return multiscale_nce(maps[:3], maps[3:], locations, **options)  # type: ignore[arg-type]

    return forward


def use_reference(training: Training) -> None:
    """Replace the training's loss by it; locations are those that the training draws."""
    training.model.g2l_loss.forward = reference_loss(training.recipe)  # type: ignore[method-assign]
