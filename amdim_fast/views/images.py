"""Images as the views take them: one uint8 tensor in either layout, or a list of any sizes.

C is 3, RGB, unless a function is told another number.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, Union

import numpy as np
import torch
from torch import Tensor

from amdim_fast.data.decoding import pixels_of, to_mode

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = Union[Tensor, np.ndarray, "Image"]


class Batch(NamedTuple):
    """Images as tensors, and whether they were one image without a batch dimension."""

    images: Tensor | list[Tensor]
    single: bool


def as_batch(images: Picture | Sequence[Picture], channels: int = 3) -> Batch:
    """Tensors of images that may be tensors, NumPy arrays or Pillow images; or of one image.

    Args:
        images: uint8 [N, H, W, C], [N, C, H, W], or a list of N pictures of any sizes: [H, W, C] or
            Pillow images of any mode, converted as when files are read. One picture is [H, W, C],
            [C, H, W] or a Pillow image. If C is 1, it may be left out: [N, H, W] and [H, W]. Arrays
            are not copied, Pillow images are.
        channels: C; Pillow images can have 1, 3 or 4.

    Raises:
        TypeError: an image is of another type. ValueError: Pillow has no images of C channels.
    """
    if isinstance(images, list | tuple):
        listed = [
            _as_tensor(f"images[{index}]", image, channels) for index, image in enumerate(images)
        ]
        if channels == 1:
            listed = [image[..., None] if image.dim() == 2 else image for image in listed]
        return Batch(listed, single=False)
    tensor = _as_tensor("images", images, channels)
    is_flat = tensor.dim() == 2 or (tensor.dim() == 3 and 1 not in tensor.shape[::2])
    if channels == 1 and is_flat:
        tensor = tensor[..., None]
    if tensor.dim() == 3:
        return Batch(tensor[None], single=True)
    return Batch(tensor, single=False)


def _as_tensor(name: str, image: object, channels: int) -> Tensor:
    if isinstance(image, Tensor):
        return image
    pillow = sys.modules.get("PIL.Image")  # whoever has an image of it has imported it
    if pillow is not None and isinstance(image, pillow.Image):
        try:
            return torch.from_numpy(pixels_of(to_mode(image, channels)))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TypeError(f"{name} is an array of {image.dtype}; it must be of uint8")
        usable = image.flags.writeable and min(image.strides, default=0) >= 0
        return torch.from_numpy(image if usable else image.copy())
    raise TypeError(
        f"{name} is of type {type(image).__name__}; it must be a uint8 tensor, a uint8 array or a"
        " Pillow image"
    )


def as_pixels(images: Tensor | Sequence[Tensor], channels: int = 3) -> Tensor | list[Tensor]:
    """Images with the channel last: a view [N, H, W, C], or a list of [H, W, C].

    Raises:
        TypeError: an image is not a uint8 tensor. ValueError: a shape does not fit, or the images
            of a list are on different devices.
    """
    if isinstance(images, Tensor):
        _require_uint8("images", images)
        if images.dim() == 4 and images.shape[-1] == channels:
            return images
        if images.dim() == 4 and images.shape[1] == channels:
            return images.movedim(1, -1)
        raise ValueError(
            f"images is {list(images.shape)}; it must be [N, H, W, {channels}], [N, {channels}, H,"
            f" W] or a list of [H, W, {channels}]"
        )
    if not isinstance(images, Iterable):
        _require_uint8("images", images)
    for index, image in enumerate(images):
        _require_uint8(f"images[{index}]", image)
        if image.dim() != 3 or image.shape[-1] != channels:
            raise ValueError(
                f"images[{index}] is {list(image.shape)}; it must be [H, W, {channels}]"
            )
        if image.device != images[0].device:
            raise ValueError(
                f"images[{index}] is on {image.device}; it must be on the device of images[0],"
                f" {images[0].device}"
            )
    return list(images)


def channel_of(pixels: Tensor | list[Tensor], channel: int) -> Tensor | list[Tensor]:
    """One channel of the result of ``as_pixels``, as gray images of three equal channels; views."""
    if isinstance(pixels, Tensor):
        return pixels[..., channel, None].expand(*pixels.shape[:-1], 3)
    return [image[..., channel, None].expand(*image.shape[:-1], 3) for image in pixels]


def _require_uint8(name: str, image: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} is of type {type(image).__name__}; it must be a uint8 tensor")
    if image.dtype != torch.uint8:
        raise TypeError(f"{name} is {image.dtype}; it must be torch.uint8")


def sizes_of(pixels: Tensor | list[Tensor]) -> Tensor:
    """Height and width of each image: int64 [N, 2] on the CPU."""
    if isinstance(pixels, Tensor):
        return torch.tensor(pixels.shape[1:3], device="cpu").expand(len(pixels), 2)
    sizes = [image.shape[:2] for image in pixels]
    return torch.tensor(sizes, dtype=torch.int64, device="cpu").view(-1, 2)


def stacked(pixels: list[Tensor], size: int) -> Tensor:
    """Images of one size as [N, size, size, 3]; N may be 0."""
    return torch.stack(pixels) if pixels else torch.empty(0, size, size, 3, dtype=torch.uint8)
