"""Files of many images each: which of a folder belong to training, and which to the test."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from amdim_fast.data.folders import (
    HIDDEN,
    NO_FILES,
    SYSTEM_FOLDERS,
    TEST_FOLDERS,
    TRAIN_FOLDERS,
)
from amdim_fast.data.phrases import counted, listed
from amdim_fast.files import printable

_SPLITS = (*TRAIN_FOLDERS, *TEST_FOLDERS)
_TESTS = ("val", "test")  # what other words for a test split begin with
_WORDS = re.compile("[a-z]+")


class Shards(NamedTuple):
    """Sorted paths relative to the folder, by split, and a phrase for each kind of others."""

    splits: dict[str, list[str]]
    ignored: tuple[str, ...]


def find_shards(root: Path, suffix: str, plain: Sequence[str] = ()) -> Shards:
    """Files with a suffix in a folder and its subfolders, by split.

    Args:
        root: the folder.
        suffix: in lower case; names may have any.
        plain: subfolders that say nothing of the split; if no file lies in ``root``, in them or
            in folders of splits, the only subfolder with such files is one.

    Returns:
        by the split's name, in lower case: the folder's, or that of a split among the words of
        the file's name, ``train`` before others, or "".

    Raises:
        ValueError: files lie in several subfolders, or a name may mean a split and does not say
            so. OSError: a folder cannot be read.
    """
    left_out: dict[str, list[str]] = {}
    files: list[str] = []
    for relative, kind in _files(root, (suffix,)):
        (left_out.setdefault(f"{suffix} files {kind}", []) if kind else files).append(relative)
    folders = {os.path.dirname(relative) for relative in files}
    others = sorted(f for f in folders if f not in ("", *plain) and f.lower() not in _SPLITS)
    if others and len(others) == len(folders):
        if len(others) > 1:
            raise ValueError(
                f"{root} has {suffix} files in the folders {listed(others)}; give one of these"
            )
        plain, others = (*plain, *others), []
    found: dict[str, list[str]] = {}
    guessed: list[str] = []
    for relative in sorted(files):
        folder, name = os.path.split(relative)
        if folder in others:
            left_out.setdefault(f"{suffix} files in other folders", []).append(relative)
            continue
        words = _words(name) if folder in ("", *plain) else [folder.lower()]
        means = [split for split in _SPLITS if split in words]
        found.setdefault(means[0] if means else "", []).append(relative)
        if len(means) > 1:
            guessed.append(f"{relative} is {means[0]}")
    _check_words(root, found)
    phrases = [counted(kind, names) for kind, names in left_out.items()]
    phrases += [counted("names of several splits", guessed)] if guessed else []
    return Shards({split: found[split] for split in sorted(found)}, tuple(phrases))


def shard_files(root: Path, suffixes: tuple[str, ...], without: Collection[str] = ()) -> list[str]:
    """Sorted paths of the files with suffixes in a folder and its subfolders, but some of these.

    Raises:
        OSError: a folder cannot be read.
    """
    return sorted(relative for relative, kind in _files(root, suffixes, without) if not kind)


def _files(
    root: Path, suffixes: tuple[str, ...], without: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """Paths, and why they do not count, or ""."""
    try:
        folders = [
            name
            for name in sorted(os.listdir(root))
            if name not in without and not name.startswith(".")
            if name.lower() not in SYSTEM_FOLDERS and os.path.isdir(root / name)
        ]
        for folder in ("", *folders):
            for name in sorted(os.listdir(root / folder)):
                path = root / folder / name
                if name.lower().endswith(suffixes) and not os.path.isdir(path):
                    why = "" if os.path.isfile(path) else f"that are {NO_FILES}"
                    yield os.path.join(folder, name), HIDDEN if name.startswith(".") else why
    except OSError as error:
        raise type(error)(f"{error.filename} cannot be read ({error.strerror})") from None


def _words(name: str) -> list[str]:
    return _WORDS.findall(name.lower())


def _check_words(root: Path, found: dict[str, list[str]]) -> None:
    """Files of which no word is a split's train if none is called so; none may be for the test."""
    names = [os.path.basename(relative) for relative in found.get("", ())]
    several = len({tuple(_words(name)) for name in names}) > 1
    if any(split in found for split in TRAIN_FOLDERS) or not (several or len(found) > 1):
        return
    for name in names:
        for word in _words(name):
            is_like = word.startswith(_TESTS) or (several and word.endswith(_TESTS))
            if is_like and not word.startswith("train"):
                raise ValueError(
                    f"{root} has {printable(name)}, of which {word!r} may mean a split; have"
                    " train, val or test as a word of the names (x-val-0), or put the files into"
                    " folders called so"
                )


def choose_splits(
    root: Path, names: Iterable[str], what: str
) -> tuple[str, str | None, tuple[str, ...]]:
    """The names of the training and of the test split, and phrases about the others.

    The first of ``train``, ``training`` and, if there is none, the unnamed or the only split; and
    the first of ``val``, ``valid``, ``validation``, ``test``, ``testing``.

    Raises:
        ValueError: none of several splits is for training.
    """
    names = list(names)
    train = next((name for name in (*TRAIN_FOLDERS, "") if name in names), None)
    if train is None and len(names) == 1:
        return names[0], None, (f"the name of the only split ({names[0]})",)
    if train is None:
        raise ValueError(
            f"{root} has the splits {', '.join(names)}; one of them must be called train"
        )
    test = next((name for name in TEST_FOLDERS if name in names and name != train), None)
    others = [name or "without a split's name" for name in names if name not in (train, test)]
    return train, test, (f"{what} beside train and test ({listed(others)})",) if others else ()
