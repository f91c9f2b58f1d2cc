"""How a test image becomes the input of an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from amdim_fast.views.augment import center_view
from amdim_fast.views.params import ViewPolicy


@dataclass(frozen=True)
class Preprocessing:
    """How a test image becomes the input of an encoder; see ``center_view``.

    Attributes:
        size: side of the input, pixels.
        mean: subtracted from RGB in 0..1.
        std: what the difference is divided by.
        resize: shorter side before the centre crop, pixels; None takes images of ``size`` as is.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} is {values}; it should be three finite numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; it should be positive")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize is {self.resize}; it should be at least size = {self.size}")

    @classmethod
    def of(cls, policy: ViewPolicy) -> Preprocessing:
        """The test-time transform that belongs to a policy."""
        return cls(policy.size, policy.mean, policy.std, policy.test_resize)

    def __call__(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """uint8 images, as in ``center_view``, to normalised float32 [N, 3, size, size]."""
        return center_view(
            images,
            resize=self.resize,
            size=self.size,
            mean=self.mean,
            std=self.std,
            channels_last=True,
        )
