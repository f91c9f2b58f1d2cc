"""The image files of a folder, with their classes and splits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amdim_fast.optional import require

TEST_FOLDERS = ("val", "test")


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        root: the folder.
        classes: names in the order of their labels; empty if nothing is labeled.
        splits: "train" and, if there is one, "test": paths relative to ``root``, and labels.
    """

    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[list[str], list[int]]]


def list_images(root: str | os.PathLike[str]) -> Listing:
    """The images below ``root``, in the order of torchvision's ``ImageFolder``.

    ``root`` has ``train/`` and perhaps ``val/`` or ``test/`` (the first that exists), or is itself
    the training set. If images lie only in subfolders, the subfolders are the classes. If some lie
    directly in the folder, it is unlabeled, and all images below it count, with label -1.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: the test folder has other classes, or a class folder has no images.
    """
    # torchvision gets this path, so the names are its paths without this prefix.
    root = Path(os.path.abspath(Path(root).expanduser()))
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the folder that holds the images")
    train = root / "train" if (root / "train").is_dir() else root
    classes = _class_folders(train)
    splits = {"train": _list(train, root, classes)}
    _check_every_class(train, classes, splits["train"][1])
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if train != root and test is not None:
        unknown = [name for name in _class_folders(test) or ("",) if name not in classes]
        if unknown:
            raise ValueError(
                f"{test} must have the class folders of {train}, but has"
                f" {unknown[0] or 'images outside any'}"
            )
        splits["test"] = _list(test, root, classes)
    return Listing(root, classes, splits)


def _class_folders(folder: Path) -> tuple[str, ...]:
    """Sorted names, or none if images lie directly in ``folder``."""
    extensions = _torchvision().IMG_EXTENSIONS
    with os.scandir(folder) as entries:
        inside = [(entry.name, entry.is_dir()) for entry in entries]
    if any(not is_dir and name.lower().endswith(extensions) for name, is_dir in inside):
        return ()
    return tuple(sorted(name for name, is_dir in inside if is_dir))


def _list(folder: Path, root: Path, classes: tuple[str, ...]) -> tuple[list[str], list[int]]:
    listing = _torchvision()
    # The class "" is the folder itself.
    labels = {name: label for label, name in enumerate(classes)} or {"": -1}
    found = listing.make_dataset(folder, labels, listing.IMG_EXTENSIONS, allow_empty=True)
    if not found:
        raise FileNotFoundError(
            f"{folder} has no images; files must end in {', '.join(listing.IMG_EXTENSIONS)}"
        )
    start = len(os.path.join(root, ""))
    return [path[start:] for path, _ in found], [label for _, label in found]


def _check_every_class(folder: Path, classes: tuple[str, ...], labels: list[int]) -> None:
    empty = sorted(set(range(len(classes))) - set(labels))
    if empty:
        raise ValueError(
            f"{folder} has {len(empty)} class folders without images, the first is"
            f" {classes[empty[0]]}; remove them or fill them"
        )


def _torchvision() -> Any:
    return require("torchvision.datasets.folder", "reading image folders")
