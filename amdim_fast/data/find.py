"""The images of whatever a path leads to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from amdim_fast.data.folders import Listing, list_images
from amdim_fast.data.hugging_face import SUFFIX as PARQUET
from amdim_fast.data.hugging_face import is_saved, read_parquet, read_saved
from amdim_fast.data.lists import is_list, read_list
from amdim_fast.data.tar_shards import SUFFIX as TARS
from amdim_fast.data.tar_shards import is_tar, read_tars


def is_images_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one file that leads to images: a list or a tar file."""
    return is_list(path) or is_tar(path)


def find_images(root: str | os.PathLike[str], *, arrays: bool = False) -> Listing:
    """``read_list`` of a list, ``read_tars`` of a tar file, and else what is in a folder.

    That is ``read_saved`` if ``datasets`` saved it; or ``list_images``; or, where there are no
    image files, ``read_tars`` or ``read_parquet``. ``arrays`` is whether ``.npy`` files are images.
    """
    root = Path(root).expanduser()
    if is_list(root):
        return read_list(root)
    if is_tar(root):
        found = read_tars(root, arrays=arrays)
        assert found is not None
        return found
    if is_saved(root):
        return read_saved(root)
    try:
        listing = list_images(root, arrays=arrays)
    except FileNotFoundError:
        found = read_tars(root, arrays=arrays) if root.is_dir() else None
        if found is None and root.is_dir():
            found = read_parquet(root)
        if found is None:
            raise
        return found
    beside = sum(name.lower().endswith((TARS, PARQUET)) for name in os.listdir(root))
    if not beside:
        return listing
    return replace(listing, ignored=(*listing.ignored, f"{beside:,} {TARS} or {PARQUET} files"))
