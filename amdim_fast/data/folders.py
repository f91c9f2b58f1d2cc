"""The image files of a folder, with their classes and splits, and what does not belong to them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amdim_fast.data.phrases import counted
from amdim_fast.data.sources import Archive, Source, source_of
from amdim_fast.files import printable
from amdim_fast.optional import require

# In any case; of several, the first is taken.
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("val", "valid", "validation", "test", "testing")
SYSTEM_FOLDERS = ("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information")
ARRAYS = ".npy"
UNREAD = f"{ARRAYS} files, which --channels other than 3 reads"
HIDDEN = "hidden or of the system"
STRAY = "images beside the class folders"
BESIDE = "beside the training folder"
LOOPS = "links back to a folder around them"
NO_FILES = "links to nothing, or no regular files"


@dataclass(frozen=True)
class Listing:
    """The images of a folder, a list or an archive.

    Attributes:
        root: the folder.
        classes: names in the order of their labels; empty if nothing is labeled.
        splits: "train" and, if there is one, "test": paths relative to ``root``, and labels.
        ignored: one phrase, fit to print, for each kind of entry that is not among the images.
        archive: what the images are read from by name; None if they are files below ``root``.
    """

    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[list[str], list[int]]]
    ignored: tuple[str, ...] = ()
    archive: Archive | None = None

    def source(self, name: str) -> Source:
        """Where the image of a name is read."""
        return source_of(self.root, name, self.archive)


def list_images(root: str | os.PathLike[str], *, arrays: bool = False) -> Listing:
    """The images below ``root``, in the order of torchvision's ``ImageFolder``.

    ``root`` has ``train/`` (or ``training/``) and perhaps ``val/``, ``valid/``, ``validation/``,
    ``test/`` or ``testing/``, of which the first counts, in any case; or it is itself the training
    set. If images lie only in subfolders, the subfolders are the classes. If some lie directly in
    the folder, at least as many as it has subfolders, it is unlabeled, and all images below it
    count, with label -1. A single class is no label. A test folder beside class folders is one if
    it has such class folders itself.

    Hidden and the system's files, images beside class folders, links to nothing or back to a folder
    around them, and whatever is no regular file are left out.

    Args:
        root: the folder.
        arrays: whether files whose names end in ``.npy`` are images too.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: the test folder has other classes, or a class folder has no images.
        OSError: a folder cannot be read.
    """
    # torchvision gets this path, so the names are its paths without this prefix.
    root = Path(os.path.abspath(Path(root).expanduser()))
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder; give the folder that holds the images, a .tar file of them,"
            " or a list of them whose name ends in .txt, .csv or .tsv"
        )
    walk = _Walk(root, arrays)
    train, test = walk.find_splits()
    classes = walk.class_folders(train, without=test)
    splits = {"train": walk.images(train, classes, without=test)}
    _check_every_class(train, classes, splits["train"][1])
    if len(classes) == 1:
        walk.note("labels", "of a single class", [classes[0]])
        classes = ()
        splits["train"] = splits["train"][0], [-1] * len(splits["train"][0])
    if test is not None and not classes:
        walk.note("test images", "as nothing is labeled", [test.name])
    elif test is not None:
        unknown = [name for name in walk.class_folders(test) or ("",) if name not in classes]
        if unknown:
            raise ValueError(
                f"{test} must have the class folders of {train}, but has"
                f" {unknown[0] or 'images outside any'}"
            )
        splits["test"] = walk.images(test, classes)
    return Listing(root, classes, splits, walk.ignored())


class _Walk:
    """Reads the folders below a root, and takes note of what it leaves out."""

    def __init__(self, root: Path, arrays: bool) -> None:
        self.root = root
        self._extensions = (*_torchvision().IMG_EXTENSIONS, *((ARRAYS,) if arrays else ()))
        self._arrays = arrays
        self._left_out: dict[str, set[str]] = {}
        self._phrases: list[str] = []

    def note(self, what: str, why: str, names: Iterable[str]) -> None:
        self._phrases.append(f"{what} {why} ({', '.join(names)})")

    def ignored(self) -> tuple[str, ...]:
        left_out = (counted(kind, sorted(names)) for kind, names in self._left_out.items())
        return (*map(printable, self._phrases), *left_out)

    def find_splits(self) -> tuple[Path, Path | None]:
        """The folder of the training images and, if there is one, that of the test images."""
        folders, images = self.entries(self.root)
        train = _first(folders, TRAIN_FOLDERS)
        test = _first(folders, TEST_FOLDERS)
        if train is not None:
            beside = {name for name in folders if name not in (train, test)} | set(images)
            self._leave_out(BESIDE, self.root, beside)
            return self.root / train, None if test is None else self.root / test
        if test is None:
            return self.root, None
        others = {name for name in folders if name != test}
        inside, _ = self.entries(self.root / test)
        if not _are_unlabeled(folders, images) and not (inside and others.issuperset(inside)):
            return self.root, None  # a class by this name
        return self.root, self.root / test

    def class_folders(self, folder: Path, *, without: Path | None = None) -> tuple[str, ...]:
        """Sorted names, or none if the folder is unlabeled."""
        folders, images = self.entries(folder)
        folders = [name for name in folders if folder / name != without]
        if _are_unlabeled(folders, images):
            return ()
        self._leave_out(STRAY, folder, images)
        return tuple(folders)

    def images(
        self, folder: Path, classes: Sequence[str], *, without: Path | None = None
    ) -> tuple[list[str], list[int]]:
        """Paths relative to the root, and labels; the class "" is the folder itself."""
        names: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes) if classes else [(-1, "")]:
            top = folder / name
            found = self._below(top, without) if top.is_dir() else []
            names += found
            labels += [label] * len(found)
        if not names:
            raise FileNotFoundError(
                f"{folder} has no images; files must end in {', '.join(self._extensions)}, or be"
                " tar shards (.tar), or a data set of Hugging Face (.parquet, or as save_to_disk"
                " writes it)"
            )
        return names, labels

    def entries(self, folder: Path) -> tuple[list[str], list[str]]:
        """Sorted names of the subfolders and of the images of a folder."""
        folders, images = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    is_image = entry.name.lower().endswith(self._extensions)
                    if not self._arrays and entry.name.lower().endswith(ARRAYS):
                        self._leave_out(UNREAD, folder, [entry.name])
                    kind = _kind(entry)
                    is_folder = kind == "folder"
                    if not is_folder and not is_image:
                        continue
                    if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS:
                        self._leave_out(HIDDEN, folder, [entry.name])
                    elif is_folder:
                        folders.append(entry.name)
                    elif kind == "file":
                        images.append(entry.name)
                    else:
                        self._leave_out(NO_FILES, folder, [entry.name])
        except OSError as error:
            raise type(error)(f"{folder} cannot be read ({error.strerror})") from None
        return sorted(folders), sorted(images)

    def _below(self, top: Path, without: Path | None) -> list[str]:
        """Images in and below a folder, sorted by folder, then by name, as torchvision does."""
        found: dict[str, list[str]] = {}
        above = {folder for folder in (top, *top.parents) if folder.is_relative_to(self.root)}
        pending = [(top, {_identity(folder) for folder in above})]
        while pending:
            folder, around = pending.pop()
            folders, images = self.entries(folder)
            found[str(folder)] = images
            for inner in (folder / name for name in folders):
                if inner == without:
                    continue
                if _identity(inner) in around:
                    self._leave_out(LOOPS, folder, [inner.name])
                else:
                    pending.append((inner, around | {_identity(inner)}))
        start = len(os.path.join(self.root, ""))
        return [
            os.path.join(folder, name)[start:] for folder in sorted(found) for name in found[folder]
        ]

    def _leave_out(self, kind: str, folder: Path, names: Iterable[str]) -> None:
        for name in names:
            relative = os.path.relpath(folder / name, self.root)
            self._left_out.setdefault(kind, set()).add(relative)


def _first(folders: Sequence[str], names: Sequence[str]) -> str | None:
    """The folder that has the first of these names, in any case."""

    def rank(name: str) -> tuple[int, bool]:
        return names.index(name.lower()), not name.islower()

    return min((name for name in folders if name.lower() in names), key=rank, default=None)


def _are_unlabeled(folders: Sequence[str], images: Sequence[str]) -> bool:
    """Whether images lie in a folder itself, and are more than strays beside its classes."""
    return len(images) >= max(1, len(folders)) or (bool(images) and len(folders) < 2)


def _kind(entry: os.DirEntry[str]) -> str | None:
    """What an entry is, or what its link leads to; None for a link to itself and the like."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return None


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise type(error)(f"{folder} cannot be read ({error.strerror})") from None
    return status.st_dev, status.st_ino


def _check_every_class(folder: Path, classes: tuple[str, ...], labels: list[int]) -> None:
    empty = sorted(set(range(len(classes))) - set(labels))
    if empty:
        raise ValueError(
            f"{folder} has {len(empty)} class folders without images, the first is"
            f" {classes[empty[0]]}; remove them or fill them"
        )


def _torchvision() -> Any:
    return require("torchvision.datasets.folder", "reading image folders")
