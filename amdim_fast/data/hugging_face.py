"""Images of Hugging Face data sets in a folder: as ``datasets`` saved them, or Parquet files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amdim_fast.data.folders import Listing
from amdim_fast.data.labels import Row, archive_listing
from amdim_fast.data.shards import choose_splits, find_shards
from amdim_fast.files import LARGEST_READ, printable
from amdim_fast.optional import require

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
SUFFIX, PARQUET_FOLDER = ".parquet", "data"
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
    count. Images are a column of type ``datasets.Image``: of several, ``image`` or ``img``. Labels
    are the only column of type ``ClassLabel`` or, of several, ``label``, ``labels`` or
    ``fine_label``; or else one of these of whole numbers or text. Nulls and -1 are no labels. Files
    are mapped into memory; nothing is written, fetched or run.

    Raises:
        ValueError: ``datasets`` cannot read the folder, or its columns or labels are not as they
            should be. ModuleNotFoundError: ``datasets`` is not installed.
    """
    root = Path(os.path.abspath(Path(root).expanduser()))
    package = _package()
    try:
        loaded = package.load_from_disk(str(root))
    except Exception as error:
        raise _unreadable(root, error) from None
    is_single = isinstance(loaded, package.Dataset)
    splits = {"train": loaded} if is_single else {str(k).lower(): loaded[k] for k in loaded}
    return _listing(root, splits, _changed(root, ".arrow"))


def read_parquet(root: str | os.PathLike[str]) -> Listing | None:
    """The images of Parquet files as on Hugging Face's hub; None without any.

    They lie in the folder, its subfolder ``data`` or those named as splits; the split's name is a
    word of the file's name (``train-00000-of-00004.parquet``). Columns are as ``read_saved`` says.
    ``datasets`` writes the rows once to its cache (``HF_DATASETS_CACHE``), as Parquet cannot be
    read at random; nothing is fetched.

    Raises:
        As ``read_saved``. OSError: a folder cannot be read.
    """
    root = Path(os.path.abspath(Path(root).expanduser()))
    shards = find_shards(root, SUFFIX, (PARQUET_FOLDER,))
    if not shards:
        return None
    package = _package()
    splits = {}
    for split, names in shards.items():
        try:
            files = [str(root / name) for name in names]
            splits[split or "train"] = package.Dataset.from_parquet(files)
        except Exception as error:
            raise _unreadable(root, error) from None
    return _listing(root, splits, _changed(root, SUFFIX))


def _package() -> Any:
    return require("datasets", "reading data sets of Hugging Face", "huggingface")


def _unreadable(root: Path, error: Exception) -> ValueError:
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split()) or type(cause).__name__
    return ValueError(f"{root} cannot be read by datasets ({printable(reason)})")


def _changed(root: Path, suffix: str) -> int:
    files = [path for path in root.rglob("*") if path.suffix.lower() == suffix]
    return max((path.stat().st_mtime_ns for path in files), default=0)


def _listing(root: Path, splits: dict[str, Any], changed: int) -> Listing:
    train, test, ignored = choose_splits(root, splits, "splits")
    package = _package()
    archived: dict[str, Any] = {}
    rows: list[Row] = []
    order: dict[str, int] = {}
    for split, key in (("train", train), ("test", test)):
        if key is None:
            continue
        data = splits[key].with_format(None)
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
        raise ValueError(f"{root} has no rows in {train}")
    place_of = order.__getitem__ if {row.label for row in rows} <= {"", *order} else None
    archive = RowImages(root, archived, changed)
    return archive_listing(root, rows, archive, order=place_of, ignored=ignored)


def _columns(place: str, features: Mapping[str, Any]) -> tuple[str, str | None, tuple[str, ...]]:
    """The columns of images and, if there is one, of labels, and phrases about others."""
    package = _package()
    images = [name for name, kind in features.items() if isinstance(kind, package.Image)]
    image = images[0] if len(images) == 1 else next((n for n in IMAGES if n in images), None)
    if image is None:
        raise ValueError(
            f"{place} has the columns {', '.join(features)}, of which"
            f" {', '.join(images) or 'none'} hold images; one must, or be called image, and have"
            " the type datasets.Image (cast_column)"
        )
    classes = [name for name, kind in features.items() if isinstance(kind, package.ClassLabel)]
    plain = [name for name in LABELS if _is_plain(features.get(name))]
    label = next((name for name in LABELS if name in classes), None)
    if label is None and len(classes) < 2:
        label = next(iter([*classes, *plain]), None)
    several = f"labels of several kinds ({', '.join(classes)})"
    return image, label, (several,) if label is None and classes else ()


def _is_plain(kind: Any) -> bool:
    name = str(getattr(kind, "dtype", ""))
    return name in ("string", "large_string") or name.lstrip("u").startswith("int")


def _labels(place: str, data: Any, column: str | None) -> list[str]:
    """The class of each row, or "" if it has none."""
    if column is None:
        return [""] * len(data)
    kind = data.features[column]
    values = data.data.column(column).to_pylist()
    names = getattr(kind, "names", None)
    if names is None:
        return ["" if value in (None, -1) else str(value) for value in values]
    table: dict[int | None, str] = {None: "", -1: "", **dict(enumerate(names))}
    wrong = next((row for row, value in enumerate(values) if value not in table), None)
    if wrong is not None:
        raise ValueError(
            f"row {wrong} of {place} has the {column} {values[wrong]}; it must be from -1 to"
            f" {len(names) - 1}"
        )
    return [table[value] for value in values]


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
