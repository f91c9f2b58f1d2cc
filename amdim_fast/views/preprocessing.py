"""How a test image becomes the input of an encoder: one deterministic view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amdim_fast.views import reference
from amdim_fast.views.augment import by_channel, check_output, compiled_views
from amdim_fast.views.compiled import check_backend
from amdim_fast.views.images import Picture, as_batch, as_pixels, sizes_of, stacked
from amdim_fast.views.params import ViewParams, ViewPolicy


@dataclass(frozen=True)
class Preprocessing:
    """How a test image becomes the input of an encoder; see ``center_view``.

    Attributes:
        size: side of the input, pixels.
        mean: of each channel, subtracted from levels in 0..1.
        std: of each channel, divides the difference.
        resize: shorter side before the center crop, pixels; None is ``size``, which leaves images
            of size x size as they are.

    Raises:
        ValueError: mean or std is not a finite number for each channel, std is not positive, or
            resize is smaller than size.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not values or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} is {values}; it must be a finite number for each channel")
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean is {self.mean} and std {self.std}; both must have one number a channel"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; it must be positive")
        _check_resize(self.resize, self.size)

    @classmethod
    def of(cls, policy: ViewPolicy) -> Preprocessing:
        """The test-time transform that belongs to a policy."""
        return cls(policy.size, policy.mean, policy.std, policy.test_resize)

    def __call__(self, images: Picture | Sequence[Picture]) -> Tensor:
        """Images, as in ``center_view``, to normalized float32 [N, C, size, size]."""
        return center_view(
            images,
            resize=self.resize,
            size=self.size,
            mean=self.mean,
            std=self.std,
            channels_last=True,
        )


def center_view(
    images: Picture | Sequence[Picture],
    *,
    resize: int | None,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str = "compiled",
) -> Tensor:
    """Make the one deterministic view of test images.

    Equals torchvision's ``Resize(resize, BICUBIC)``, ``CenterCrop(size)``, ``ToTensor()`` and
    ``Normalize(mean, std)`` on Pillow images, bit for bit; see ``augment``.

    Args:
        images: as in ``augment``; NumPy arrays and Pillow images too, and one image: [H, W, C],
            [C, H, W] or a Pillow image.
        resize: shorter side before the crop, pixels, at least ``size``; None is ``size``, which
            leaves images of size x size as they are. A policy's ``test_resize``.
        size: side of the view, pixels.
        mean: of each of the C channels, for pixels in 0..1.
        std: of each channel, positive.
        dtype: float32, float16 or bfloat16.
        channels_last: as in ``augment``.
        backend: as in ``augment``.

    Returns:
        [N, C, size, size]; [C, size, size] of one image.

    Raises:
        TypeError: images are not uint8, or dtype is not one of the three.
        ValueError: shapes or sizes disagree.
        RuntimeError: the compiled library is not built, or not for this device.
    """
    check_backend(backend)
    check_output(size=size, mean=mean, std=std, dtype=dtype)
    batch = as_batch(images, len(mean))
    pixels = as_pixels(batch.images, len(mean))
    shorter = size if resize is None else resize
    _check_resize(shorter, size)
    if not len(pixels) or backend == "reference":

        def made(rgb: Tensor | list[Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
            views = _reference_center(rgb, shorter, size)
            return reference.normalize(views, mean, std, dtype, channels_last)

        normalized = by_channel(pixels, mean, std, made, channels_last=channels_last)
        return normalized[0] if batch.single else normalized
    sizes = sizes_of(pixels)
    resized = shorter * sizes // sizes.amin(1, keepdim=True)
    begin = ((resized - size).double() / 2).round().long()  # halves to even, as torchvision
    (views,) = compiled_views(
        pixels,
        _unchanged(sizes),
        windows=torch.cat([resized, begin], 1).int(),
        size=size,
        mean=mean,
        std=std,
        dtype=dtype,
        channels_last=channels_last,
    )
    return views[0] if batch.single else views


def _check_resize(resize: int | None, size: int) -> None:
    if resize is not None and resize < size:
        raise ValueError(f"resize is {resize}; it must be at least size = {size}")


def _reference_center(pixels: Tensor | list[Tensor], resize: int, size: int) -> Tensor:
    if isinstance(pixels, Tensor):
        return reference.center_crop(pixels, resize, size)
    return stacked([reference.center_crop(image[None], resize, size)[0] for image in pixels], size)


def _unchanged(sizes: Tensor) -> ViewParams:
    """Parameters [1, N] of whole images, without any change."""
    lead = (1, len(sizes))
    no = torch.zeros(lead, dtype=torch.bool)
    one, zero = torch.ones(lead), torch.zeros(lead, dtype=torch.int32)
    return ViewParams(
        crop=torch.cat([torch.zeros_like(sizes), sizes], 1).int()[None],
        translate=zero[..., None].expand(*lead, 2),
        flip=no,
        jitter=no,
        order=torch.arange(4, dtype=torch.int32).expand(*lead, 4),
        brightness=one,
        contrast=one,
        saturation=one,
        hue=zero.float(),
        gray=no,
    )
