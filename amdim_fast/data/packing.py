"""Writing packed stores: parallel, resumable, and the same bytes after any interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from amdim_fast.checks import whole_number
from amdim_fast.data.channels import MOST_CHANNELS, decoder_of, resized
from amdim_fast.data.claims import claimed
from amdim_fast.data.decoding import BadImage, pixels_of
from amdim_fast.data.find import find_images, is_images_file
from amdim_fast.data.folders import Listing
from amdim_fast.data.orientation import said_orientation
from amdim_fast.data.packed_store import (
    FORMAT,
    HASHED,
    INDEX_TYPE,
    MANIFEST,
    PLAN,
    SHARD_NAME,
    SKIPPED,
    VERSION,
)
from amdim_fast.data.progress import progress_bar
from amdim_fast.data.sources import Archive, Source, source_of, stamp_of
from amdim_fast.data.workers import ordered_map, worker_count
from amdim_fast.files import (
    is_temporary,
    printable,
    read_whole,
    remove_temporaries,
    sha256_of,
    written_whole,
)
from amdim_fast.optional import require

SHARD_RECORD = re.compile(rf"{SHARD_NAME.pattern}\.json")
# A killed run loses at most one shard per worker; a reader keeps one file open per shard.
LEAST_SHARD_IMAGES, MOST_SHARDS = 256, 128


@dataclass(frozen=True)
class Packed:
    """A store that ``pack`` wrote, with one sentence in ``skipped`` for each file it left out."""

    path: Path
    images: int
    skipped: tuple[str, ...]


def pack(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    size: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    max_pixels: int | None = None,
    channels: int = 3,
    progress: bool = True,
) -> Packed:
    """Decode a folder of images once, into a store that ``load_data`` and ``read_store`` open.

    If it is killed, call it again with the same options: it continues, and the store has the same
    bytes as after an uninterrupted call, with any number of workers.

    Args:
        source: as ``list_images`` reads it: with ``train/`` and ``val/`` or ``test/`` of class
            folders, class folders, or images; or whatever else ``load_data`` reads by decoding.
        destination: folder of the store: new, empty, or an unfinished store.
        size: images whose shorter side is longer than this many pixels are resized to it, with
            Pillow's antialiased bicubic and torchvision's rounding of the other side; None keeps
            every size.
        workers: processes; 0 works in this one, None uses every CPU.
        skip_bad: leave out bad images and list them in ``skipped.txt``, instead of stopping.
        max_pixels: as in ``load_data``.
        channels: as in ``load_data``.
        progress: whether to show a bar with images/s.

    Raises:
        FileExistsError: the destination is finished, or holds something else; it is left alone.
        BadImage: a file cannot be read as an image. ValueError: an option is wrong or differs from
            the unfinished store's, or the source has changed since. BlockingIOError: another
            process is packing there. ChildProcessError: a worker died. OSError: the disk is full or
            a file cannot be written.
    """
    if size is not None and size < 1:
        raise ValueError(f"size is {size}; it must be 1 or more")
    if max_pixels is not None:
        whole_number("max_pixels", max_pixels)
    whole_number("channels", channels, most=MOST_CHANNELS)
    workers = worker_count(workers)
    listing = find_images(source, arrays=channels != 3)
    folder = Path(destination)
    if not is_images_file(source) and folder.resolve().is_relative_to(listing.root.resolve()):
        raise ValueError(f"{folder} is inside its source {source}; pack to another folder")
    plan = _make_plan(listing, size, skip_bad, max_pixels, channels)
    if progress and listing.ignored:
        print(f"left out: {', '.join(listing.ignored)}", file=sys.stderr)
    if progress:
        names = listing.splits["train"][0]
        if said := said_orientation(lambda index: listing.source(names[index]), len(names)):
            print(said, file=sys.stderr)
    with claimed(folder):
        _agree_on_plan(folder, plan)
        remove_temporaries(folder)
        tasks = _shard_tasks(folder, listing, plan)
        _pack_shards(tasks, listing.archive, workers, progress)
        remove_temporaries(folder)
        return _finish(folder, plan, tasks)


def _make_plan(
    listing: Listing, size: int | None, skip_bad: bool, max_pixels: int | None, channels: int
) -> dict[str, Any]:
    files = hashlib.sha256()
    for names, labels in listing.splits.values():
        for name, label in zip(names, labels, strict=True):
            entry = [name, label, *stamp_of(listing.source(name))]
            files.update(json.dumps(entry).encode())
    pillow = require("PIL", "packing images")
    options = {"size": size, "skip_bad": skip_bad, "pillow": pillow.__version__}
    if max_pixels is not None:  # stores of before do not have it
        options["max_pixels"] = max_pixels
    if channels != 3:
        options["channels"] = channels
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": str(listing.root),
        "files_sha256": files.hexdigest(),
        "options": options,
        "classes": list(listing.classes),
    }


def _agree_on_plan(folder: Path, plan: dict[str, Any]) -> None:
    if (folder / MANIFEST).exists():
        raise FileExistsError(f"{folder} is a finished store; remove it or pack to another folder")
    if not (folder / PLAN).exists():
        if not all(map(is_temporary, os.listdir(folder))):
            raise FileExistsError(
                f"{folder} is not empty and not an unfinished store; choose another"
            )
        _write_json(folder / PLAN, plan)
        return
    try:
        begun = json.loads(read_whole(folder / PLAN))
        # Shards without a bad image are the same.
        if plan["options"]["skip_bad"] and begun["options"].get("skip_bad") is False:
            begun["options"]["skip_bad"] = True
        differing = [
            f"{name} = {begun['options'].get(name)!r}, not {plan['options'].get(name)!r}"
            for name in {**plan["options"], **begun["options"]}
            if begun["options"].get(name) != plan["options"].get(name)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{folder / PLAN} is damaged; remove {folder} and pack again") from None
    if not any(map(SHARD_RECORD.fullmatch, os.listdir(folder))):
        _write_json(folder / PLAN, plan)  # nothing has been packed yet
        return
    if differing:
        raise ValueError(
            f"{folder} was begun with {', '.join(differing)}; use the same options or remove it"
        )
    if begun != plan:
        raise ValueError(
            f"{folder} was begun from other files than {plan['source']} holds now; remove it and"
            " pack again"
        )
    _write_json(folder / PLAN, plan)


@dataclass(frozen=True)
class _ShardTask:
    folder: Path
    name: str
    root: Path
    names: list[str]
    labels: list[int]
    size: int | None
    skip_bad: bool
    max_pixels: int | None
    channels: int

    @property
    def record(self) -> Path:
        """The file that is written last: a shard that has it is complete."""
        return self.folder / f"{self.name}.json"


def _shard_tasks(folder: Path, listing: Listing, plan: dict[str, Any]) -> list[_ShardTask]:
    options = [plan["options"].get(name) for name in ("size", "skip_bad", "max_pixels")]
    options.append(plan["options"].get("channels", 3))
    tasks = []
    for split, (names, labels) in listing.splits.items():
        step = max(LEAST_SHARD_IMAGES, -(-len(names) // MOST_SHARDS))
        for number, start in enumerate(range(0, len(names), step)):
            part = slice(start, start + step)
            parts = names[part], labels[part]
            tasks.append(
                _ShardTask(folder, f"{split}-{number:05d}", listing.root, *parts, *options)
            )
    return tasks


def _pack_shards(
    tasks: list[_ShardTask], archive: Archive | None, workers: int, progress: bool
) -> None:
    left = [task for task in tasks if not task.record.exists()]
    total = sum(len(task.names) for task in tasks)
    done = total - sum(len(task.names) for task in left)
    work = partial(_pack_shard, archive)
    with (
        contextlib.closing(ordered_map(work, left, workers=workers, ahead=1)) as counts,
        progress_bar(total=total, initial=done, unit="image", shown=progress) as bar,
    ):
        for count in counts:
            bar.update(count)


def _pack_shard(archive: Archive | None, task: _ShardTask) -> int:
    digest = hashlib.sha256()
    rows: list[tuple[int, int, int, int]] = []
    names: list[str] = []
    skipped: list[str] = []
    end = 0
    with written_whole(task.folder / f"{task.name}.bin") as file:
        for name, label in zip(task.names, task.labels, strict=True):
            try:
                pixels = _decode_to_size(source_of(task.root, name, archive), task)
            except BadImage as error:
                if not task.skip_bad:
                    raise BadImage(f"{error}; --skip-bad leaves such files out") from None
                skipped.append(str(error))
                continue
            file.write(pixels.data)
            digest.update(pixels.data)
            rows.append((end, pixels.shape[0], pixels.shape[1], label))
            names.append(name)
            end += pixels.size
    index = np.array(rows, INDEX_TYPE).reshape(-1, 4).tobytes()
    with written_whole(task.folder / f"{task.name}.index") as file:
        file.write(index)
    record = {
        "name": task.name,
        "images": len(rows),
        "bytes": end,
        "sha256": digest.hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "names": names,
        "skipped": skipped,
    }
    _write_json(task.record, record)
    return len(task.names)


def _decode_to_size(source: Source, task: _ShardTask) -> np.ndarray:
    pixels = pixels_of(decoder_of(task.channels, max_pixels=task.max_pixels)(source))
    (height, width), size = pixels.shape[:2], task.size
    if size is None or min(width, height) <= size:
        return pixels
    short, long = sorted((width, height))
    other = int(size * long / short)
    return resized(pixels, *((size, other) if width <= height else (other, size)))


def _finish(folder: Path, plan: dict[str, Any], tasks: list[_ShardTask]) -> Packed:
    splits: dict[str, dict[str, Any]] = {}
    skipped: list[str] = []
    for task in tasks:
        record = json.loads(read_whole(task.record))
        skipped += record["skipped"]
        split = splits.setdefault(task.name.partition("-")[0], {"images": 0, "shards": []})
        split["images"] += record["images"]
        shard = {key: record[key] for key in ("name", "images", "bytes", "sha256", "index_sha256")}
        split["shards"].append({**shard, HASHED["json"]: sha256_of(task.record)})
    if skipped:
        with written_whole(folder / SKIPPED) as file:
            lines = "".join(f"{printable(line)}\n" for line in skipped)
            file.write(lines.encode(errors="surrogateescape"))
    if not splits["train"]["images"]:
        raise ValueError(f"every image of {plan['source']} is bad; see {folder / SKIPPED}")
    _write_json(folder / MANIFEST, {**plan, "skipped": len(skipped), "splits": splits})
    return Packed(folder, sum(split["images"] for split in splits.values()), tuple(skipped))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
