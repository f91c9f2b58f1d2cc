"""The images of whatever a path leads to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from amdim_fast.data.folders import ARRAYS, Listing, list_images
from amdim_fast.data.hugging_face import ROWS, is_saved, read_parquet, read_saved
from amdim_fast.data.hugging_face import SUFFIX as PARQUET
from amdim_fast.data.lists import SUFFIXES as LISTS
from amdim_fast.data.lists import is_list, read_list
from amdim_fast.data.phrases import counted
from amdim_fast.data.shards import shard_files
from amdim_fast.data.tar_shards import PACKED, is_tar, read_tars
from amdim_fast.data.tar_shards import SUFFIX as TARS

_DEPTH = 4  # folders below, in which messages look


def is_images_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one file that leads to images: a list, a tar file, or rows of a table."""
    return is_list(path) or is_tar(path) or _is_rows(path)


def find_images(root: str | os.PathLike[str], *, arrays: bool = False) -> Listing:
    """``read_list`` of a list, ``read_tars`` of a tar file, and else what is in a folder.

    That is ``read_saved`` if ``datasets`` saved it; or ``list_images``; or, where there are no
    image files, ``read_tars`` or ``read_parquet``. ``arrays`` is whether ``.npy`` files are images.
    Files of the other kinds beside them are said in ``Listing.ignored``.
    """
    root = Path(root).expanduser()
    if is_list(root):
        return read_list(root)
    if is_tar(root):
        found = read_tars(root, arrays=arrays)
        assert found is not None
        return found
    if _is_rows(root):
        raise ValueError(
            f"{root} is one file of a data set of Hugging Face; give its folder, {root.parent}"
        )
    if not root.exists() and root.name.lower().endswith((*LISTS, TARS, *PACKED, *ROWS)):
        raise FileNotFoundError(f"{root} does not exist; give a file or folder of images")
    if is_saved(root):
        return _with_others(read_saved(root), (TARS, PARQUET))
    try:
        return _with_others(list_images(root, arrays=arrays), (TARS, PARQUET))
    except FileNotFoundError as error:
        if not root.is_dir():
            raise
        if (found := read_tars(root, arrays=arrays)) is not None:
            return _with_others(found, (PARQUET,), arrays=arrays)
        if (found := read_parquet(root)) is not None:
            return _with_others(found, (), arrays=arrays)
        raise FileNotFoundError(_elsewhere(root) or str(error)) from None


def _is_rows(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() in ROWS and Path(path).is_file()


def _with_others(listing: Listing, suffixes: tuple[str, ...], *, arrays: bool = True) -> Listing:
    """The listing, which says what else lies in its folder and in subfolders without its images."""
    root, phrases = listing.root, list(listing.ignored)
    read: set[str] = set()
    if listing.archive is None:
        read = {name.partition(os.sep)[0] for names, _ in listing.splits.values() for name in names}
    kinds = {f"{suffix} files": (suffix,) for suffix in suffixes}
    for what, endings in {**kinds, "compressed tar files": PACKED}.items():
        if others := shard_files(root, endings, read):
            phrases.append(counted(what, others))
    if not arrays:
        names = [
            os.path.relpath(os.path.join(folder, name), root)
            for folder, _, files in os.walk(root)
            for name in files
            if name.lower().endswith(ARRAYS)
        ]
        if names:
            phrases.append(counted(f"{ARRAYS} files, images only with --channels", sorted(names)))
    return replace(listing, ignored=tuple(phrases))


def _elsewhere(root: Path) -> str | None:
    """A sentence about a folder without images that says where some may be."""
    if packed := shard_files(root, PACKED):
        return (
            f"{root} has no images but {counted('compressed tar files', packed)}; unpack them to"
            " plain .tar files, as compressed ones cannot be read at random"
        )
    for folder, folders, files in os.walk(root):
        folders.sort()
        depth = len(Path(folder).relative_to(root).parts)
        if depth == _DEPTH:
            folders.clear()
        if depth and (is_saved(folder) or any(n.lower().endswith((TARS, PARQUET)) for n in files)):
            return f"{root} has no images, but {folder} has files that may hold some; give it"
    return None
