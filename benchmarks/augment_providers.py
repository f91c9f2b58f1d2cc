"""The same recipe of two views by torchvision and kornia, as their users write it."""

from __future__ import annotations

import importlib.util
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

    transform = transforms.Compose(
        [*_geometry(transforms, policy), transforms.ToTensor(), _normalize(transforms, policy)]
    )
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


def kornia(policy: ViewPolicy, images: Tensor, dtype: torch.dtype) -> Call | None:
    """Kornia on float tensors, parameters drawn per sample; None if it is not installed."""
    if importlib.util.find_spec("kornia") is None:
        return None
    import kornia.augmentation as K

    size = (policy.size, policy.size)
    amounts = (policy.brightness, policy.contrast, policy.saturation, policy.hue)
    parts: list[Any] = []
    if policy.scale is not None:
        parts.append(K.RandomResizedCrop(size, policy.scale, policy.ratio, resample="bicubic"))
    parts += [
        K.RandomHorizontalFlip(p=policy.flip_probability),
        K.ColorJitter(*amounts, p=policy.jitter_probability),
        K.RandomGrayscale(p=policy.gray_probability),
        K.Normalize(torch.tensor(policy.mean), torch.tensor(policy.std)),
    ]
    transform = torch.nn.Sequential(*parts).to(images.device)
    planar = images.movedim(-1, 1).contiguous()
    return lambda: [transform(planar.float().div(255)).to(dtype) for _ in range(2)]


def _geometry(transforms: Any, policy: ViewPolicy) -> list[Any]:
    bicubic = transforms.InterpolationMode.BICUBIC
    crop: list[Any] = []
    if policy.scale is not None:
        crop.append(
            transforms.RandomResizedCrop(
                policy.size, scale=policy.scale, ratio=policy.ratio, interpolation=bicubic
            )
        )
    jitter = transforms.ColorJitter(
        policy.brightness, policy.contrast, policy.saturation, policy.hue
    )
    return [
        transforms.RandomHorizontalFlip(policy.flip_probability),
        *crop,
        transforms.RandomApply([jitter], p=policy.jitter_probability),
        transforms.RandomGrayscale(policy.gray_probability),
    ]


def _normalize(transforms: Any, policy: ViewPolicy) -> Any:
    return transforms.Normalize(policy.mean, policy.std)


def _v2(policy: ViewPolicy, dtype: torch.dtype) -> Any:
    from torchvision.transforms import v2

    return v2.Compose(
        [*_geometry(v2, policy), v2.ToDtype(dtype, scale=True), _normalize(v2, policy)]
    )


OTHERS: dict[str, dict[str, Callable[[ViewPolicy, Tensor, torch.dtype], Call | None]]] = {
    "cpu": {"torchvision on Pillow": pillow, "torchvision v2 on tensors": v2_per_sample},
    "cuda": {
        "torchvision v2, per sample": v2_per_sample,
        "torchvision v2, one draw a batch": v2_batched,
        "kornia": kornia,
    },
}
