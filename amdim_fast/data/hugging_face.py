"""Images of Hugging Face data sets in a folder: as ``datasets`` saved them, or Parquet files."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amdim_fast.data.folders import Listing
from amdim_fast.data.labels import SPLITS as LISTED
from amdim_fast.data.labels import Row, archive_listing
from amdim_fast.data.phrases import counted
from amdim_fast.data.shards import choose_splits, find_shards
from amdim_fast.files import LARGEST_READ, printable
from amdim_fast.optional import require

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
SUFFIX, PARQUET_FOLDER = ".parquet", "data"
ROWS = (SUFFIX, ".arrow")
IMAGES = ("image", "img")  # of several columns, the first of these
LABELS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class RowImage:
    """The image of a row."""

    place: str
    images: Any
    row: int
    changed: int

    def __str__(self) -> str:
        return self.place

    def stamp(self) -> tuple[int, int]:
        """See ``Member.stamp``."""
        return 0, self.changed

    def read(self) -> bytes:
        """See ``Member.read``."""
        (image,) = self.images[self.row].values()
        content = None if image is None else image["bytes"]
        if content is None:
            what = "no image" if image is None else f"only the path {image['path']!r}, no image"
            raise ValueError(f"{self} has {what}")
        if len(content) > LARGEST_READ:
            raise ValueError(f"{self} has {len(content):,} bytes; it may have {LARGEST_READ:,}")
        return content


class RowImages:
    """The images of data sets, as ``Archive``; names are SPLIT/ROW.

    Args:
        root: the folder, for messages.
        splits: data sets by the names of their splits, of a single column of encoded images.
        changed: when the folder's files were last changed, in ns.
    """

    def __init__(self, root: Path, splits: Mapping[str, Any], changed: int) -> None:
        self.root = root
        self._splits = splits
        self._changed = changed

    def member(self, name: str) -> RowImage:
        """See ``Archive.member``."""
        split, _, row = name.rpartition("/")
        return RowImage(self.place(name), self._splits[split], int(row), self._changed)

    def place(self, name: str) -> str:
        """See ``Archive.place``."""
        split, _, row = name.rpartition("/")
        return f"{self.root}: row {row} of {split}"


def is_saved(root: str | os.PathLike[str]) -> bool:
    """Whether ``datasets.Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote a folder."""
    root = Path(root)
    return (root / SPLITS).is_file() or ((root / STATE).is_file() and (root / INFO).is_file())


def read_saved(root: str | os.PathLike[str]) -> Listing:
    """The images of a folder that ``save_to_disk`` of ``datasets`` wrote.

    A ``Dataset`` is the training set; of a ``DatasetDict``, ``choose_splits`` says which splits
    count. Images are a column of type ``datasets.Image``: of several, ``image`` or ``img``; without
    one, these may hold the bytes of files, as ``binary`` or in a struct ``bytes``. Labels are the
    only column of type ``ClassLabel`` or, of several, ``label``, ``labels`` or ``fine_label``; or
    else one of these of whole numbers, text or bool, which is 0 or 1. Nulls and -1 are no labels.
    Files are mapped into memory; nothing is written, fetched, run or printed.

    Raises:
        ValueError: ``datasets`` cannot read the folder, or its columns or labels are not as they
            should be. ModuleNotFoundError: ``datasets`` is not installed.
    """
    root = Path(os.path.abspath(Path(root).expanduser()))
    package = _package()
    try:
        with _quiet(package):
            loaded = package.load_from_disk(str(root))
    except Exception as error:
        raise _unreadable(root, error) from None
    splits: dict[str, Any] = {}
    found = {"train": loaded} if isinstance(loaded, package.Dataset) else loaded
    for name in found:
        if str(name).lower() in splits:
            raise ValueError(
                f"{root} has the splits {', '.join(found)}, of which some differ in case alone;"
                " save it with other names"
            )
        splits[str(name).lower()] = found[name]
    train, test, ignored = choose_splits(root, splits, "splits")
    chosen = {name: splits[name] for name in (train, test) if name is not None}
    return _listing(root, chosen, _changed(root, ".arrow"), ignored)


def read_parquet(root: str | os.PathLike[str]) -> Listing | None:
    """The images of Parquet files as on Hugging Face's hub; None without any.

    They lie in the folder, its subfolder ``data``, those named as splits or, if there are none
    there, the only one that has such files; the split's name is a word of the file's name
    (``train-00000-of-00004.parquet``). Columns are as ``read_saved`` says. ``datasets`` writes the
    rows once to its cache (``HF_DATASETS_CACHE``), as Parquet cannot be
    read at random; nothing is fetched.

    Raises:
        As ``read_saved``. OSError: a folder cannot be read.
    """
    root = Path(os.path.abspath(Path(root).expanduser()))
    shards = find_shards(root, SUFFIX, (PARQUET_FOLDER,))
    if not shards.splits:
        return None
    train, test, ignored = choose_splits(root, shards.splits, f"{SUFFIX} files")
    package = _package()
    splits = {}
    for split in (train, test):
        if split is None:
            continue
        try:
            files = [str(root / name) for name in shards.splits[split]]
            with _quiet(package):
                splits[split or "train"] = package.Dataset.from_parquet(files)
        except Exception as error:
            raise _unreadable(root, error) from None
    return _listing(root, splits, _changed(root, SUFFIX), (*ignored, *shards.ignored))


@contextlib.contextmanager
def _quiet(package: Any) -> Iterator[None]:
    """A context without bars and log of ``datasets``; what was set comes back."""
    logger = logging.getLogger(package.__name__)
    level, had_bars = logger.level, not package.are_progress_bars_disabled()
    with warnings.catch_warnings():  # of bars that the environment asks for
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        package.disable_progress_bars()
        try:
            yield
        finally:
            logger.setLevel(level)
            if had_bars:
                package.enable_progress_bars()


def _package() -> Any:
    return require("datasets", "reading data sets of Hugging Face", "huggingface")


def _unreadable(root: Path, error: Exception) -> ValueError:
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split()) or type(cause).__name__
    return ValueError(f"{root} cannot be read by datasets ({printable(reason)})")


def _changed(root: Path, suffix: str) -> int:
    files = [path for path in root.rglob("*") if path.suffix.lower() == suffix]
    return max((path.stat().st_mtime_ns for path in files), default=0)


def _listing(root: Path, splits: dict[str, Any], changed: int, ignored: tuple[str, ...]) -> Listing:
    """Of the training split and, if there is one, the test split."""
    package = _package()
    archived: dict[str, Any] = {}
    rows: list[Row] = []
    order: dict[str, int] = {}
    for split, (key, formatted) in zip(LISTED, splits.items(), strict=False):
        data = formatted.with_format(None)
        place = f"{root}, {key}"
        image, label, others = _columns(place, data.features)
        ignored = (*ignored, *others) if split == "train" else ignored
        _check_buffers(place, data, [image, *([label] if label else [])])
        labels = _labels(place, data, label)
        order |= _order(data.features[label]) if label else {}
        rows += [Row(f"{key}/{i}", f"{key}/{i}", text, split) for i, text in enumerate(labels)]
        encoded = data.select_columns([image])
        archived[key] = encoded.cast_column(image, package.Image(decode=False))
    if not any(row.split == "train" for row in rows):
        raise ValueError(f"{root} has no rows in {next(iter(splits))}")
    place_of = order.__getitem__ if {row.label for row in rows} <= {"", *order} else None
    archive = RowImages(root, archived, changed)
    return archive_listing(root, rows, archive, order=place_of, ignored=ignored)


def _columns(place: str, features: Mapping[str, Any]) -> tuple[str, str | None, tuple[str, ...]]:
    """The columns of images and, if there is one, of labels, and phrases about others."""
    package = _package()
    images = [name for name, kind in features.items() if isinstance(kind, package.Image)]
    if not images:
        images = [name for name in IMAGES if _is_encoded(features.get(name))]
    image = images[0] if len(images) == 1 else next((n for n in IMAGES if n in images), None)
    if image is None:
        raise ValueError(
            f"{place} has the columns {', '.join(map(_typed, features.items()))}, of which"
            f" {', '.join(images) or 'none'} hold images; one must have the type datasets.Image"
            f" (cast_column), or be called {' or '.join(IMAGES)} and have it or hold the bytes of"
            " files"
        )
    classes = [name for name, kind in features.items() if isinstance(kind, package.ClassLabel)]
    plain = [name for name in LABELS if _is_plain(features.get(name))]
    label = next((name for name in LABELS if name in classes), None)
    if label is None and len(classes) < 2:
        label = next(iter([*classes, *plain]), None)
    if label is not None:
        return image, label, ()
    if classes:
        return image, None, (f"labels of several kinds ({', '.join(classes)})",)
    others = [
        _typed((name, kind))
        for name, kind in features.items()
        if name != image and not isinstance(kind, package.Image)
    ]
    return image, None, (counted("columns that are no labels", others),) if others else ()


def _typed(column: tuple[str, Any]) -> str:
    name, kind = column
    if isinstance(kind, dict):
        return f"{name} (struct of {', '.join(kind) or 'nothing'})"
    is_value = isinstance(kind, _package().Value)
    return f"{name} ({kind.dtype if is_value else type(kind).__name__})"


def _is_encoded(kind: Any) -> bool:
    kind = kind.get("bytes") if isinstance(kind, dict) else kind
    return getattr(kind, "dtype", "") in ("binary", "large_binary")


def _is_plain(kind: Any) -> bool:
    name = str(getattr(kind, "dtype", ""))
    is_text = name in ("string", "large_string")
    return isinstance(kind, _package().Value) and (
        is_text or name == "bool" or name.lstrip("u").startswith("int")
    )


def _labels(place: str, data: Any, column: str | None) -> list[str]:
    """The class of each row, or "" if it has none."""
    if column is None:
        return [""] * len(data)
    kind = data.features[column]
    values = data.data.column(column).to_pylist()
    names = getattr(kind, "names", None)
    if names is None:
        return [_named(value) for value in values]
    table: dict[int | None, str] = {None: "", -1: "", **dict(enumerate(names))}
    wrong = next((row for row, value in enumerate(values) if value not in table), None)
    if wrong is not None:
        raise ValueError(
            f"row {wrong} of {place} has the {column} {values[wrong]}; it must be from -1 to"
            f" {len(names) - 1}"
        )
    return [table[value] for value in values]


def _named(value: Any) -> str:
    if value is None or value == -1:
        return ""
    return str(int(value) if isinstance(value, bool) else value)


def _order(kind: Any) -> dict[str, int]:
    return {name: place for place, name in enumerate(getattr(kind, "names", None) or ())}


def _check_buffers(place: str, data: Any, columns: list[str]) -> None:
    """Damaged offsets would be followed out of the file."""
    for column in columns:
        try:
            data.data.column(column).validate(full=True)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{place} is damaged in its column {column} ({reason})") from None
