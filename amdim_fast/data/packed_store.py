"""The packed store: decoded images in a few large files, read without decoding.

A store is a folder. Each split is cut into shards of three files: ``NAME.bin``, the uint8 [H, W, C]
images one after the other; ``NAME.index``, little-endian int64 [n, 4] of offset, height, width and
label; ``NAME.json``, a record of sizes, hashes, source file names and skipped files.
``manifest.json`` is written last: a folder without it is unfinished; its options have ``channels``
unless C is 3. ``packing`` writes stores.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amdim_fast.data.channels import MOST_CHANNELS
from amdim_fast.data.image_sets import StoredImages
from amdim_fast.files import read_whole, sha256_of

FORMAT, VERSION = "amdim_fast packed images", 1
MANIFEST, PLAN, SKIPPED = "manifest.json", "plan.json", "skipped.txt"
INDEX_TYPE = np.dtype("<i8")
SHARD_NAME = re.compile(r"(train|test)-[0-9]{5}")
HASHED = {"bin": "sha256", "index": "index_sha256", "json": "record_sha256"}
LONGEST_SIDE = 2**20


@dataclass(frozen=True)
class PackedStore:
    """A finished store.

    Attributes:
        classes: names in the order of their labels.
        splits: "train" and perhaps "test".
        manifest: as read.
        skipped: one sentence for each file that was left out when the store was packed.
    """

    path: Path
    classes: tuple[str, ...]
    splits: Mapping[str, PackedImages]
    manifest: Mapping[str, Any]
    skipped: tuple[str, ...] = ()


class PackedImages(StoredImages):
    """One split of a store, read with one system call per image; thread-safe.

    Reads into the caller's memory instead of mapping the files. This is as fast, and where a file
    shrinks or a disk fails it raises an error that names the file; a mapping would raise a signal.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Mapping[str, Any]],
        classes: int,
        channels: int = 3,
    ) -> None:
        self._folder = folder
        self._names = [shard["name"] for shard in shards]
        self.channels = channels
        tables = [_read_index(folder, shard, classes, channels) for shard in shards]
        counts = [len(table) for table in tables]
        table = np.concatenate(tables) if tables else np.empty((0, 4), np.int64)
        self._starts = np.cumsum([0, *counts])
        self._shard = np.repeat(np.arange(len(shards)), counts)
        self._offset = table[:, 0]
        self._shapes = torch.from_numpy(table[:, 1:3].copy())
        self.labels = torch.from_numpy(table[:, 3].copy())
        self._open()

    def _open(self) -> None:
        self._files: dict[int, int] = {}
        weakref.finalize(self, _close, self._files)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_files"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._offset)

    def shapes(self, index: Tensor) -> Tensor:
        """See ``StoredImages.shapes``."""
        return self._shapes[index]

    def read_into(self, index: Tensor, out: Tensor) -> None:
        """See ``StoredImages.read_into``; OSError names a shard that cannot be read."""
        pixels: Any = out.numpy()
        buffer = memoryview(pixels)
        sizes = (self.channels * self._shapes[index].prod(1)).tolist()
        rows = index.numpy()
        shards, offsets = self._shard[rows].tolist(), self._offset[rows].tolist()
        self._expect(shards, offsets, sizes)
        start = 0
        for image, shard, offset, size in zip(rows.tolist(), shards, offsets, sizes, strict=True):
            try:
                count = os.preadv(self._file(shard), [buffer[start : start + size]], offset)
            except OSError as error:
                path = self._folder / f"{self._names[shard]}.bin"
                raise type(error)(f"{path} cannot be read ({error.strerror})") from None
            if count != size:
                raise OSError(
                    f"{self._folder / self._names[shard]}.bin ends inside {self.name(image)}; the"
                    " store is damaged, pack it again"
                )
            start += size

    def _expect(self, shards: list[int], offsets: list[int], sizes: list[int]) -> None:
        """Let the system fetch all of these at once, where it can; slow storage gains most."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # the read will tell
                for shard, offset, size in zip(shards, offsets, sizes, strict=True):
                    os.posix_fadvise(self._file(shard), offset, size, os.POSIX_FADV_WILLNEED)

    def name(self, index: int) -> str:
        """The file an image was packed from, relative to the source folder."""
        shard = int(self._shard[index])
        return self._names_in(shard)[index - int(self._starts[shard])]

    def names(self) -> list[str]:
        """As ``name``, of all images."""
        return [name for shard in range(len(self._names)) for name in self._names_in(shard)]

    def _names_in(self, shard: int) -> list[str]:
        record = json.loads(read_whole(self._folder / f"{self._names[shard]}.json"))
        return list(map(str, record["names"]))

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            path = self._folder / f"{self._names[shard]}.bin"
            opened = os.open(path, os.O_RDONLY)
            if self._files.setdefault(shard, opened) != opened:
                os.close(opened)
        return self._files[shard]


def _close(files: dict[int, int]) -> None:
    for descriptor in files.values():
        os.close(descriptor)
    files.clear()


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a store, finished or not."""
    return any((Path(path) / name).is_file() for name in (MANIFEST, PLAN))


def read_store(path: str | os.PathLike[str]) -> PackedStore:
    """Open a finished store; sizes and indices are checked, hashes are not (``verify_store``).

    Raises:
        FileNotFoundError: the store is unfinished, or a file of it is missing.
        ValueError: the manifest or an index is damaged or points outside the store.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        if (folder / PLAN).is_file():
            raise FileNotFoundError(
                f"{folder} is an unfinished store; run the same amdim-fast pack command again to"
                " continue it"
            )
        raise FileNotFoundError(f"{folder} is not a packed store: it has no {MANIFEST}")
    try:
        manifest = json.loads(read_whole(folder / MANIFEST))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}; it must be {FORMAT!r}")
        if manifest["version"] != VERSION:
            raise ValueError(f"its version is {manifest['version']!r}; it must be {VERSION}")
        classes = tuple(str(name) for name in manifest["classes"])
        channels = manifest.get("options", {}).get("channels", 3)
        if type(channels) is not int or not 1 <= channels <= MOST_CHANNELS:
            raise ValueError(f"its channels are {channels!r}")
        splits = {name: list(split["shards"]) for name, split in manifest["splits"].items()}
        if "train" not in splits:
            raise KeyError("train")
        for name, shards in splits.items():
            for shard in shards:
                _check_entry(shard, name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{folder / MANIFEST} cannot be used: {reason}") from None
    images = {
        name: PackedImages(folder, shards, len(classes), channels)
        for name, shards in splits.items()
    }
    lines = folder / SKIPPED
    said = read_whole(lines).decode("utf-8", "surrogateescape") if lines.is_file() else ""
    return PackedStore(folder, classes, images, manifest, tuple(said.splitlines()))


def _check_entry(shard: Mapping[str, Any], split: str) -> None:
    name = shard["name"]
    if not isinstance(name, str) or not SHARD_NAME.fullmatch(name) or not name.startswith(split):
        raise ValueError(f"{name!r} is not the name of a shard of {split}")
    for key in ("images", "bytes"):
        if type(shard[key]) is not int or shard[key] < 0:
            raise ValueError(f"{key} of {name} is {shard[key]!r}")
    for key in HASHED.values():
        if not isinstance(shard[key], str):
            raise ValueError(f"{key} of {name} is {shard[key]!r}")


def _read_index(folder: Path, shard: Mapping[str, Any], classes: int, channels: int) -> np.ndarray:
    path = folder / f"{shard['name']}.index"
    pixels = folder / f"{shard['name']}.bin"
    for file in (path, pixels):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; the store is damaged, pack it again")
    content = read_whole(path)
    wanted = shard["images"] * 4 * INDEX_TYPE.itemsize
    for file, size, expected in (
        (path, len(content), wanted),
        (pixels, pixels.stat().st_size, shard["bytes"]),
    ):
        if size != expected:
            raise ValueError(f"{file} has {size} bytes instead of {expected}; pack the store again")
    table = np.frombuffer(content, INDEX_TYPE).reshape(-1, 4).astype(np.int64)
    offset, height, width, label = table.T
    sides = table[:, 1:3]
    if (sides < 1).any() or (sides > LONGEST_SIDE).any() or (offset < 0).any():
        raise ValueError(f"{path} has impossible sizes or offsets; pack the store again")
    # The difference cannot overflow as the sum could.
    if (offset > shard["bytes"] - channels * height * width).any():
        raise ValueError(f"{path} points outside {pixels.name}; pack the store again")
    if int((channels * height * width).sum()) != shard["bytes"]:
        raise ValueError(
            f"{path} does not fit {pixels.name} with images of {channels} channels; pack the store"
            " again"
        )
    if (label < -1).any() or (label >= max(classes, 0)).any():
        raise ValueError(f"{path} has labels that belong to no class; pack the store again")
    return table


def verify_store(path: str | os.PathLike[str]) -> int:
    """Compare every file of a store with its SHA-256 in the manifest; returns the image count.

    Raises:
        ValueError: a file differs. Also what ``read_store`` raises.
    """
    store = read_store(path)
    for split in store.manifest["splits"].values():
        for shard in split["shards"]:
            for suffix, key in HASHED.items():
                file = store.path / f"{shard['name']}.{suffix}"
                if sha256_of(file) != shard[key]:
                    raise ValueError(f"{file} differs from what was packed; pack the store again")
    return sum(len(images) for images in store.splits.values())
