"""Sets of uint8 images with one interface: in memory and in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from amdim_fast.data.decoding import decode, pixels_of
from amdim_fast.data.sources import Archive, Source, source_of

if TYPE_CHECKING:
    from PIL.Image import Image

Images = Tensor | list[Tensor]


class ImageSet(Protocol):
    """Images by index.

    Attributes:
        labels: int64 [N]; -1 for unknown classes.
        channels: C, of every image; 3 is RGB.
    """

    labels: Tensor
    channels: int = 3

    def __len__(self) -> int:
        """N."""

    def batch(self, index: Tensor) -> Images:
        """The images of int64 ``index`` [n], in new memory.

        Returns:
            uint8 [n, H, W, C] if all have one size, otherwise a list of n [H, W, C].
        """

    def name(self, index: int) -> str:
        """The name of an image in messages: its file, or its index."""

    def names(self) -> list[str]:
        """The name of each image: its file, relative to the folder, or its index."""


@runtime_checkable
class StoredImages(ImageSet, Protocol):
    """An ImageSet whose pixels need no decoding: they are copied into the caller's buffer."""

    def shapes(self, index: Tensor) -> Tensor:
        """int64 [n, 2], height and width."""

    def read_into(self, index: Tensor, out: Tensor) -> None:
        """Write the images one after the other into contiguous uint8 ``out`` [sum of C H W]."""

    def batch(self, index: Tensor) -> Images:
        """See ``ImageSet.batch``."""
        return unpack(*read_flat(self, index, partial(torch.empty, dtype=torch.uint8)))


def read_flat(
    images: StoredImages, index: Tensor, buffer: Callable[[int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Images one after the other in one ``buffer(bytes)``, and their shapes."""
    shapes = images.shapes(index)
    flat = buffer(int(images.channels * shapes.prod(1).sum()))
    images.read_into(index, flat)
    return flat, shapes


def unpack(flat: Tensor, shapes: Tensor) -> Images:
    """Views of images that lie one after the other: [n, H, W, C] if of one size, or a list."""
    pixels = shapes.prod(1)
    if len(shapes) and bool((shapes == shapes[0]).all()):
        height, width = shapes[0].tolist()
        return flat.view(len(shapes), height, width, -1)
    parts = flat.split((len(flat) // max(1, int(pixels.sum())) * pixels).tolist())
    pairs = zip(parts, shapes.tolist(), strict=True)
    return [part.view(height, width, -1) for part, (height, width) in pairs]


class TensorImages(StoredImages):
    """Images in memory.

    Args:
        images: uint8 [N, H, W, C], contiguous.
        labels: int64 [N]; all -1 by default.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or not images.shape[-1]:
            raise ValueError(
                f"images is {images.dtype} {list(images.shape)}; it must be uint8 [N, H, W, C]"
            )
        self.images, self.channels = images.contiguous(), images.shape[-1]
        self.labels = _labels(labels, len(images))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> Tensor:
        """See ``ImageSet.batch``."""
        return self.images.index_select(0, index)

    def shapes(self, index: Tensor) -> Tensor:
        """See ``StoredImages.shapes``."""
        return torch.tensor(self.images.shape[1:3]).expand(len(index), 2)

    def read_into(self, index: Tensor, out: Tensor) -> None:
        """See ``StoredImages.read_into``."""
        torch.index_select(self.images, 0, index, out=out.view(-1, *self.images.shape[1:]))

    def name(self, index: int) -> str:
        """See ``ImageSet.name``."""
        return f"image {index}"

    def names(self) -> list[str]:
        """See ``ImageSet.names``."""
        return [self.name(index) for index in range(len(self))]


class FileImages(ImageSet):
    """Images in files or archives, decoded on demand; ``decoding.decode`` says what the pixels are.

    Args:
        root: folder that the names start from.
        names: N paths relative to ``root``.
        labels: int64 [N]; all -1 by default.
        decoder: ``decode``, perhaps with its options, or ``decode_channels``; picklable.
        archive: what the names are looked up in, instead of files.
        channels: C, of what the decoder gives.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        names: Sequence[str],
        labels: Tensor | None = None,
        decoder: Callable[[Source], Image | np.ndarray] = decode,
        archive: Archive | None = None,
        channels: int = 3,
    ) -> None:
        self.root, self.archive = Path(root), archive
        self.decoder, self.channels = decoder, channels
        # One array: a million Python strings are slow to send to worker processes.
        self._names = np.array([os.fsencode(name) for name in names] or [b""])[: len(names)]
        self.labels = _labels(labels, len(names))

    def __len__(self) -> int:
        return len(self._names)

    def source(self, index: int) -> Source:
        """Where an image is read."""
        return source_of(self.root, os.fsdecode(bytes(self._names[index])), self.archive)

    def batch(self, index: Tensor) -> Images:
        """See ``ImageSet.batch``; BadImage or OSError names the file that failed."""
        images = [torch.from_numpy(pixels_of(self.decoder(self.source(i)))) for i in index.tolist()]
        if images and all(image.shape == images[0].shape for image in images):
            return torch.stack(images)
        return images

    def without(self, left_out: Sequence[int]) -> FileImages:
        """The set without the images of these indices."""
        kept = np.delete(np.arange(len(self)), np.asarray(left_out, dtype=np.int64))
        names = [os.fsdecode(bytes(name)) for name in self._names[kept]]
        labels = self.labels[torch.from_numpy(kept)]
        options = self.decoder, self.archive, self.channels
        return FileImages(self.root, names, labels, *options)

    def names(self) -> list[str]:
        """See ``ImageSet.names``."""
        return [os.fsdecode(name) for name in self._names.tolist()]

    def missing(self, names: Iterable[str]) -> set[str]:
        """Those of the names that are not in the set."""
        given = {os.fsencode(name) for name in names}
        return {os.fsdecode(name) for name in given - set(self._names.tolist())} if given else set()

    def named_in(self, text: str) -> str | None:
        """The name of the image whose path stands in a text, such as an error's."""
        names = map(os.fsdecode, self._names.tolist())
        place = self.root.joinpath if self.archive is None else self.archive.place
        return next((name for name in names if f"{place(name)} " in text), None)

    def name(self, index: int) -> str:
        """See ``ImageSet.name``."""
        return str(self.source(index))


def _labels(labels: Tensor | None, count: int) -> Tensor:
    if labels is None:
        return torch.full((count,), -1)
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(
            f"labels is {labels.dtype} {list(labels.shape)}; it must be int64 [{count}]"
        )
    return labels
