"""The same recipe of two views by torchvision, as its users write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from amdim_fast.views.params import ViewPolicy

Call = Callable[[], object]
PER_IMAGE = "torchvision draws and applies image by image"


def pillow(policy: ViewPolicy, images: Tensor, dtype: torch.dtype) -> Call:
    """Torchvision's transforms on Pillow images, already decoded."""
    from PIL import Image
    from torchvision import transforms

    transform = _composed(transforms, policy, transforms.ToTensor())
    decoded = [Image.fromarray(image.numpy()) for image in images]
    return lambda: [torch.stack([transform(image) for image in decoded]) for _ in range(2)]


def v2_per_sample(policy: ViewPolicy, images: Tensor, dtype: torch.dtype) -> Call:
    """Torchvision v2 on tensors, image by image."""
    transform, planar = _v2(policy, dtype), images.movedim(-1, 1).contiguous()
    return lambda: [torch.stack([transform(image) for image in planar]) for _ in range(2)]


def v2_batched(policy: ViewPolicy, images: Tensor, dtype: torch.dtype) -> Call:
    """Torchvision v2 on the batch, which draws one parameter set for all its images."""
    transform, planar = _v2(policy, dtype), images.movedim(-1, 1).contiguous()
    return lambda: [transform(planar) for _ in range(2)]


def _composed(transforms: Any, policy: ViewPolicy, to_float: Any) -> Any:
    """The recipe from either of torchvision's modules of transforms."""
    parts = [transforms.RandomHorizontalFlip(policy.flip_probability)]
    if policy.scale is not None:
        bicubic = transforms.InterpolationMode.BICUBIC
        parts.append(transforms.RandomResizedCrop(policy.size, policy.scale, policy.ratio, bicubic))
    amounts = (policy.brightness, policy.contrast, policy.saturation, policy.hue)
    parts += [
        transforms.RandomApply([transforms.ColorJitter(*amounts)], p=policy.jitter_probability),
        transforms.RandomGrayscale(policy.gray_probability),
        to_float,
        transforms.Normalize(policy.mean, policy.std),
    ]
    return transforms.Compose(parts)


def _v2(policy: ViewPolicy, dtype: torch.dtype) -> Any:
    from torchvision.transforms import v2

    return _composed(v2, policy, v2.ToDtype(dtype, scale=True))


OTHERS: dict[str, dict[str, Callable[[ViewPolicy, Tensor, torch.dtype], Call]]] = {
    "cpu": {"torchvision on Pillow": pillow, "torchvision v2 on tensors": v2_per_sample},
    "cuda": {
        "torchvision v2, per sample": v2_per_sample,
        "torchvision v2, one draw a batch": v2_batched,
    },
}
