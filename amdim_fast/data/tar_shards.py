"""Images in tar files of WebDataset's layout, read at random."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from amdim_fast.data.folders import ARRAYS, HIDDEN, Listing
from amdim_fast.data.labels import Row, archive_listing
from amdim_fast.data.phrases import counted
from amdim_fast.data.shards import Shards, choose_splits, find_shards
from amdim_fast.data.tar_members import NoFile, TarMember, members_of
from amdim_fast.files import read_whole

SUFFIX = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CLASS_NAMES = "classnames.txt"
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff")
LABEL, RECORD = "cls", "json"
_LARGEST_LABEL, _LARGEST_RECORD = 100, 1 << 20  # bytes
_SHARD = re.compile(r"(.*?\.tar)/(.*)", re.IGNORECASE | re.DOTALL)
_OTHERS = re.compile(r"__[^/]*__($|/)")  # of WebDataset's own use


def is_tar(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file whose name ends as a tar file's does, compressed or not."""
    return Path(path).name.lower().endswith((SUFFIX, *PACKED)) and Path(path).is_file()


class TarImages:
    """The images of tar files, as ``Archive``; names are PATH_OF_TAR/NAME_OF_MEMBER.

    Args:
        root: what the paths of the tar files are relative to.
        members: the images; all names differ.
    """

    def __init__(self, root: Path, members: Sequence[TarMember]) -> None:
        self.root = root
        stamps = {member.tar: member.tar_stamp for member in members}
        numbers = {tar: number for number, tar in enumerate(stamps)}
        self._tars = list(stamps.items())
        # Arrays: a million Python objects are slow to send to worker processes.
        names = np.array([os.fsencode(_name(root, member)) for member in members])
        order = np.argsort(names)
        self._names = names[order]
        rows = [(numbers[member.tar], member.offset, member.size) for member in members]
        self._rows = np.array(rows, np.int64)[order]

    def member(self, name: str) -> TarMember:
        """See ``Archive.member``."""
        tar, offset, size = self._rows[np.searchsorted(self._names, os.fsencode(name))].tolist()
        path, stamp = self._tars[tar]
        return TarMember(path, _parts(name)[1], offset, size, stamp)

    def place(self, name: str) -> str:
        """See ``Archive.place``."""
        tar, member = _parts(name)
        return f"{self.root / tar}: {member}"


def _name(root: Path, member: TarMember) -> str:
    return f"{os.path.relpath(member.tar, root)}/{member.name}"


def _parts(name: str) -> tuple[str, str]:
    found = _SHARD.fullmatch(name)
    assert found is not None
    return found[1], found[2]


def read_tars(path: str | os.PathLike[str], *, arrays: bool = False) -> Listing | None:
    """The images of a tar file, or of those in a folder, in WebDataset's layout; None without any.

    Tar files lie in the folder or its only subfolder that has any, and ``train``, ``val`` or
    another name of a split is a word of their names (``imagenet-train-000000.tar``), or they lie
    in subfolders of these names. ``choose_splits`` says which count. They are read in the order of
    their names.

    Members that follow one another and have the same path up to the first dot of the file's name
    are a sample: an image, of one of ``EXTENSIONS`` or, with ``arrays``, ``.npy``, and, if it is
    labeled, ``.cls`` with a whole number, or ``.json`` with the whole number or the text ``label``
    or ``cls``. -1 is no label. Names of the numbers stand in the lines of ``classnames.txt`` in
    the folder or the one around it; without it they are the numbers. Hard links to earlier
    members are read as these. Samples without an image and what is no regular file are left out.
    Nothing is unpacked.

    Raises:
        ValueError: a tar file is not as it should be (``members_of``), or a sample is not; says
            which. OSError: one cannot be read.
    """
    path = Path(os.path.abspath(Path(path).expanduser()))
    root = path.parent if is_tar(path) else path
    extensions = (*EXTENSIONS, *((ARRAYS[1:],) if arrays else ()))
    shards = Shards({"": [path.name]}, ()) if is_tar(path) else find_shards(path, SUFFIX)
    if not shards.splits:
        return None
    train, test, ignored = choose_splits(root, shards.splits, "tar files")
    names = _class_names(root)
    rows: list[Row] = []
    images: list[TarMember] = []
    left_out: dict[str, list[str]] = {}
    for split, key in (("train", train), ("test", test)):
        for shard in shards.splits[key] if key is not None else ():
            for sample in _samples(root / shard, shard, extensions, left_out):
                if sample.image is None:
                    shown = f"{shard}/{sample.key}" + (f": {sample.hint}" if sample.hint else "")
                    left_out.setdefault("samples without an image", []).append(shown)
                    continue
                if sample.hint:
                    shown = f"{shard}/{sample.key}: {sample.hint}"
                    left_out.setdefault("samples with further images", []).append(shown)
                name = _name(root, sample.image)
                rows.append(Row(name, name, _named(sample, names), split))
                images.append(sample.image)
    phrases = [counted(what, found) for what, found in left_out.items()]
    if not any(row.split == "train" for row in rows):
        raise ValueError(
            f"{root / shards.splits[train][0]} holds no image; members must end in"
            f" .{'; '.join([', .'.join(extensions), *phrases])}"
        )
    ignored = (*ignored, *shards.ignored, *phrases)
    _check_unlike([row.name for row in rows], root)
    places = {name: place for place, name in enumerate(names or ())}
    order = places.__getitem__ if places and {row.label for row in rows} <= {"", *places} else None
    return archive_listing(root, rows, TarImages(root, images), order=order, ignored=ignored)


@dataclass
class _Sample:
    tar: Path
    key: str
    extensions: tuple[str, ...]
    image: TarMember | None = None
    label: TarMember | None = None
    record: TarMember | None = None
    hint: str = ""  # why a member that looks like an image is none

    def add(self, suffix: str, member: TarMember) -> None:
        part = {LABEL: "label", RECORD: "record"}.get(suffix)
        part = "image" if suffix in self.extensions else part
        if part is None:
            if f".{suffix}" == ARRAYS:
                self.hint = f"{member.name} is an image only with --channels"
            elif suffix.rpartition(".")[2] in self.extensions:
                self.hint = (
                    f"{member.name} has the extension .{suffix}, as extensions begin at the first"
                    " dot of a name (WebDataset)"
                )
            return
        if (before := getattr(self, part)) is not None:
            raise ValueError(
                f"{self.tar} has {before.name} and {member.name} in one sample, which may have one"
                f" {'image' if part == 'image' else '.' + suffix}"
            )
        setattr(self, part, member)


def _samples(
    tar: Path, shard: str, extensions: tuple[str, ...], left_out: dict[str, list[str]]
) -> Iterator[_Sample]:
    """Samples; other members go to ``left_out``, by kind."""
    sample: _Sample | None = None
    links: dict[str, str] = {}
    for member in members_of(tar):
        folder, slash, file = member.name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        key, end = f"{folder}{slash}{stem}", file.rpartition(".")[2].lower()
        if not stem and end in extensions:
            left_out.setdefault(f"members {HIDDEN}", []).append(f"{shard}/{member.name}")
        if isinstance(member, NoFile):
            if dot and end in (LABEL, RECORD):
                raise ValueError(
                    f"{member} is no regular file but a link to {member.link or 'nothing'}, which"
                    " is not followed; make the tar file with tar --dereference"
                )
            left_out.setdefault("members that are no regular files", []).append(
                f"{shard}/{member.name}"
            )
            if end in extensions:
                links[key] = f"{member.name} is no regular file"
            continue
        if not stem or not dot or _OTHERS.match(member.name):
            continue
        if sample is not None and key != sample.key:
            yield _checked(sample, links)
            sample = None
        sample = sample or _Sample(tar, key, extensions)
        sample.add(suffix.lower(), member)
    if sample is not None:
        yield _checked(sample, links)


def _checked(sample: _Sample, links: Mapping[str, str]) -> _Sample:
    if sample.image is None and sample.label is not None:
        order = "the members of a sample must follow one another (tar --sort=name)"
        raise ValueError(
            f"{sample.label} has no image beside it (.{', .'.join(sample.extensions)});"
            f" {sample.hint or links.get(sample.key, order)}"
        )
    return sample


def _named(sample: _Sample, names: Sequence[str] | None) -> str:
    """The class of a sample, or "" if it has none."""
    place, label = sample.label, _label(sample)
    if isinstance(label, str):
        return label
    if label == -1 or label is None:
        return ""
    if label < 0 or (names is not None and label >= len(names)):
        most = "" if names is None else f" below {len(names)}, as {CLASS_NAMES} has so many lines"
        raise ValueError(
            f"{place or sample.record} has the label {label}; it must be -1, or 0 or more{most}"
        )
    return str(label) if names is None else names[label]


def _label(sample: _Sample) -> int | str | None:
    if sample.label is not None:
        content = _content(sample.label, _LARGEST_LABEL)
        if not re.fullmatch(rb"\s*[+-]?[0-9]{1,18}\s*", content):
            raise ValueError(
                f"{sample.label} holds {content[:20]!r}; it must be a whole number, the class"
            )
        return int(content)
    if sample.record is None or sample.image is None:
        return None
    try:
        found = json.loads(_content(sample.record, _LARGEST_RECORD))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{sample.record} is not JSON ({reason})") from None
    if not isinstance(found, dict):
        return None
    label = next((found[name] for name in ("label", "cls") if found.get(name) is not None), None)
    if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
        raise ValueError(
            f"{sample.record} has the label {label!r:.40}; it must be a whole number or text"
        )
    return label


def _content(member: TarMember, most: int) -> bytes:
    if member.size > most:
        raise ValueError(f"{member} has {member.size:,} bytes; it may have {most:,}")
    return member.read()


def _class_names(root: Path) -> list[str] | None:
    for path in (root / CLASS_NAMES, root.parent / CLASS_NAMES):
        if path.is_file():
            try:
                names = read_whole(path).decode("utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not UTF-8 text; save it as such") from None
            names = [name.strip() for name in names]
            while names and not names[-1]:
                names.pop()
            seen: set[str] = set()
            for number, name in enumerate(names, 1):
                if not name or name in seen:
                    what = f"has {name!r} again" if name else "is empty"
                    raise ValueError(f"line {number} of {path} {what}; classes must differ")
                seen.add(name)
            return names
    return None


def _check_unlike(names: Sequence[str], root: Path) -> None:
    if len(set(names)) < len(names):
        again = next(a for a, b in pairwise(sorted(names)) if a == b)
        tar, member = _parts(again)
        raise ValueError(f"{root / tar} has {member} twice; names must differ")
