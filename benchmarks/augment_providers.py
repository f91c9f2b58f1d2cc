"""The same recipe of two views by torchvision, as its users write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from amdim_fast.views.params import ViewPolicy

Call = Callable[[], object]
PER_IMAGE = "torchvision draws and applies image by image"
ONCE = "torchvision v2, per sample"  # takes half a second on a GPU


def pillow(policy: ViewPolicy, images: Tensor) -> Call:
    """Transforms of Pillow images, already decoded."""
    from PIL import Image
    from torchvision import transforms

    transform = _composed(transforms, policy, transforms.ToTensor())
    decoded = [Image.fromarray(image.numpy()) for image in images]
    return lambda: [torch.stack([transform(image) for image in decoded]) for _ in range(2)]


def tensors(policy: ViewPolicy, images: Tensor) -> Call:
    """Transforms v2 of tensors."""
    from torchvision.transforms import v2

    transform = _composed(v2, policy, v2.ToDtype(torch.float32, scale=True))
    planar = images.movedim(-1, 1).contiguous()
    return lambda: [torch.stack([transform(image) for image in planar]) for _ in range(2)]


def batches(policy: ViewPolicy, images: Tensor) -> Call:
    """Transforms v2 of a batch, all of whose images get the parameters that are drawn once."""
    from torchvision.transforms import v2

    transform = _composed(v2, policy, v2.ToDtype(torch.bfloat16, scale=True))
    planar = images.movedim(-1, 1).contiguous()
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


# Of each device.
OTHERS: dict[str, dict[str, Callable[[ViewPolicy, Tensor], Call]]] = {
    "cpu": {"torchvision on Pillow": pillow, "torchvision v2 on tensors": tensors},
    "cuda": {"torchvision v2, one draw a batch": batches, ONCE: tensors},
}
