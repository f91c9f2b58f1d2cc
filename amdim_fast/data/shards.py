"""Files of many images each: which of a folder belong to training, and which to the test."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from amdim_fast.data.folders import NAMED, TEST_FOLDERS, TRAIN_FOLDERS

_WORDS = re.compile("[a-z]+")


def find_shards(root: Path, suffix: str, plain: Sequence[str] = ()) -> dict[str, list[str]]:
    """Files with a suffix in a folder and its subfolders, by split.

    Args:
        root: the folder.
        suffix: in lower case; names may have any.
        plain: subfolders that say nothing of the split.

    Returns:
        the split's name, in lower case: the folder's, or the first of a split among the words of
        the file's name, or ""; -> sorted paths relative to ``root``. Hidden files are left out.

    Raises:
        OSError: a folder cannot be read.
    """
    found: dict[str, list[str]] = {}
    for relative in _files(root, suffix):
        folder, name = os.path.split(relative)
        words = _WORDS.findall(name.lower()) if folder in ("", *plain) else [folder.lower()]
        split = next((word for word in words if word in (*TRAIN_FOLDERS, *TEST_FOLDERS)), "")
        if split or folder in ("", *plain):
            found.setdefault(split, []).append(relative)
    return {split: sorted(found[split]) for split in sorted(found)}


def _files(root: Path, suffix: str) -> list[str]:
    try:
        tops = ["", *(entry.name for entry in os.scandir(root) if _is_seen(entry, is_folder=True))]
        return [
            os.path.join(top, entry.name)
            for top in tops
            for entry in os.scandir(root / top)
            if entry.name.lower().endswith(suffix) and _is_seen(entry, is_folder=False)
        ]
    except OSError as error:
        raise type(error)(f"{error.filename} cannot be read ({error.strerror})") from None


def _is_seen(entry: os.DirEntry[str], *, is_folder: bool) -> bool:
    return not entry.name.startswith(".") and (entry.is_dir() if is_folder else entry.is_file())


def choose_splits(
    root: Path, names: Iterable[str], what: str
) -> tuple[str, str | None, tuple[str, ...]]:
    """The names of the training and of the test split, and a phrase about the others.

    The first of ``train``, ``training`` and, if there is none, the unnamed or the only split; and
    the first of ``val``, ``valid``, ``validation``, ``test``, ``testing``.

    Raises:
        ValueError: none of several splits is for training.
    """
    names = list(names)
    train = next((name for name in (*TRAIN_FOLDERS, "") if name in names), None)
    if train is None and len(names) == 1:
        train = names[0]
    if train is None:
        raise ValueError(
            f"{root} has the splits {', '.join(names)}; one of them must be called train"
        )
    test = next((name for name in TEST_FOLDERS if name in names and name != train), None)
    others = [name or "without a split's name" for name in names if name not in (train, test)]
    shown = ", ".join([*others[:NAMED], *["..."] * (len(others) > NAMED)])
    return train, test, (f"{what} beside train and test ({shown})",) if others else ()
