"""Digits pasted into patches of photographs, with the digits' masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from amdim_fast.data.datasets import load_digits
from amdim_fast.data.image_sets import ImageSet, TensorImages

SIZE = 32
# Share of a location's cell that the digit must cover for the location to belong to it.
COVERED = 0.25
# Photographs are halved before patches are cut, so that a patch shows more than one texture.
PHOTO_SCALE = 2
OPAQUE = 128
# Digits are 20 px wide and high; moved by this many pixels at most, they stay in the picture.
SHIFT = 5


class Composites(NamedTuple):
    """Images uint8 [N, 32, 32, 3], masks bool [N, 32, 32] and labels int64 [N]."""

    images: Tensor
    masks: Tensor
    labels: Tensor


def load_composites(seed: int) -> tuple[Composites, Composites]:
    """4,000 images to train and 1,000 to test, from one seed.

    Each of the digits of ``load_digits`` is moved by up to 5 px along each axis, has one color,
    uniform, and one patch of scikit-learn's two sample photographs as background. Test patches come
    from the right fifth of the photographs and train patches from the rest, so no background pixel
    is in both.
    """
    from sklearn.datasets import load_sample_images

    data = load_digits()
    photographs = [
        F.avg_pool2d(torch.tensor(photo).permute(2, 0, 1).float(), PHOTO_SCALE)
        for photo in load_sample_images().images
    ]
    generator = torch.Generator().manual_seed(seed)
    train, test = zip(
        *(_cut(photo, int(0.8 * photo.shape[2])) for photo in photographs), strict=True
    )
    return _compose(data.train, train, generator), _compose(data.test, test, generator)


def _cut(photo: Tensor, column: int) -> tuple[Tensor, Tensor]:
    return photo[:, :, :column], photo[:, :, column:]


def _compose(
    digits: ImageSet | None, photographs: tuple[Tensor, ...], generator: torch.Generator
) -> Composites:
    assert isinstance(digits, TensorImages)
    count = len(digits)
    shifts = torch.randint(-SHIFT, SHIFT + 1, (count, 2), generator=generator).tolist()
    pairs = zip(digits.images[..., 0], shifts, strict=True)
    gray = torch.stack([torch.roll(digit, shift, (0, 1)) for digit, shift in pairs])
    color = 255 * torch.rand(count, 1, 1, 3, generator=generator)
    patches = torch.empty(count, SIZE, SIZE, 3)
    for index in range(count):
        photo = photographs[index % len(photographs)]
        top, left = (
            int(torch.randint(0, length - SIZE + 1, (), generator=generator))
            for length in photo.shape[1:]
        )
        patches[index] = photo[:, top : top + SIZE, left : left + SIZE].permute(1, 2, 0)
    blended = torch.lerp(patches, color, gray[..., None].float() / 255)
    return Composites(blended.round().to(torch.uint8), gray >= OPAQUE, digits.labels)


def location_masks(masks: Tensor) -> Tensor:
    """Whether the digit covers a location of the 7x7 map: bool [N, 7, 7] of [N, 32, 32].

    The centers of the locations are 4 px apart; a location's cell is the 4 x 4 px around it.
    """
    return F.avg_pool2d(masks[:, None, 2:-2, 2:-2].float(), 4)[:, 0] >= COVERED


def overlaps(segments: Tensor, masks: Tensor, components: int) -> Tensor:
    """Intersection over union [N, K] of components with masks.

    ``segments`` are int64 [N, h, w], the component at each location, ``masks`` bool [N, h, w].
    """
    chosen = F.one_hot(segments, components).bool()
    both = (chosen & masks[..., None]).sum(dim=(1, 2))
    either = (chosen | masks[..., None]).sum(dim=(1, 2))
    return both.float() / either.clamp_min(1)
