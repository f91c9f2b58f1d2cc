"""From images to features with a frozen encoder, and what it expects images to look like."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amdim_fast.augmentation import center_view
from amdim_fast.encoder import Encoder
from amdim_fast.views import ViewPolicy


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


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule gets its own mode back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def encode(
    encoder: Encoder, images: Tensor | Sequence[Tensor], preprocessing: Preprocessing | None
) -> Tensor:
    """Global features of images, in evaluation mode and without gradients.

    Args:
        encoder: its submodules' modes are restored.
        images: uint8, as in ``center_view``, or normalised floating point
            [N, in_channels, size, size].
        preprocessing: for uint8 images.

    Returns:
        [N, D], dtype and device of the encoder.

    Raises:
        ValueError: a shape does not fit, or ``preprocessing`` is None and needed.
        TypeError: images are neither uint8 nor of the encoder's dtype.
    """
    weight = encoder.rkhs_block_5.conv1.weight
    if isinstance(images, Tensor) and images.is_floating_point():
        x = images.to(weight.device)
    elif preprocessing is None:
        raise ValueError(
            "the model does not know how uint8 images become its input; set model.preprocessing,"
            " such as Preprocessing.of(POLICIES['cifar']), or give normalised floats"
        )
    else:
        x = preprocessing(images).to(weight.device, weight.dtype)
    with eval_mode(encoder):
        return encoder(x).r1.flatten(1)
