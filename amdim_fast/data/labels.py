"""Listings from rows of names, labels and splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from amdim_fast.data.folders import Listing
from amdim_fast.data.sources import Archive

SPLITS = ("train", "test")


class Row(NamedTuple):
    """An image of a listing: what its place is found by, its name, its label or "", its split."""

    key: Any
    name: str
    label: str
    split: str


def listing_of(
    root: Path,
    rows: Sequence[Row],
    place: Callable[[Any], str],
    *,
    order: Callable[[str], Any] | None = None,
    ignored: Sequence[str] = (),
    archive: Archive | None = None,
) -> Listing:
    """The listing of rows, all of which have labels, or none.

    Classes are those of the training images, in the order of numbers if all are whole numbers and
    otherwise sorted, or by ``order``. A single class is no label. ``place`` names the place of a
    row by its key, in messages.

    Raises:
        ValueError: a test image has a class that no training image has.
    """
    found = {row.label for row in rows if row.label and row.split == "train"}
    if order is None and all(map(str.isdecimal, found)):
        order = int
    classes = sorted(found, key=order)
    for row in rows:
        if row.label and row.label not in found:
            raise ValueError(
                f"{place(row.key)} has the class {row.label!r}, which no training image has"
            )
    ignored = list(ignored)
    if len(classes) == 1:
        ignored.append(f"labels of a single class ({classes[0]})")
        classes = []
    numbers = {label: number for number, label in enumerate(classes)}
    splits: dict[str, tuple[list[str], list[int]]] = {}
    for row in rows:
        names, labels = splits.setdefault(row.split, ([], []))
        names.append(row.name)
        labels.append(numbers.get(row.label, -1))
    if not classes and "test" in splits:
        del splits["test"]
        ignored.append("test images as nothing is labeled")
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    return Listing(root, tuple(classes), ordered, tuple(ignored), archive)


def archive_listing(
    root: Path,
    rows: Sequence[Row],
    archive: Archive,
    *,
    order: Callable[[str], Any] | None = None,
    ignored: Sequence[str] = (),
) -> Listing:
    """``listing_of`` rows whose keys are their names in an archive.

    A test split in which no image is labeled is left out if training images are.

    Raises:
        ValueError: some images have labels and some have none, or as ``listing_of``.
    """
    labeled = {bool(row.label) for row in rows if row.split == "train"}
    if labeled == {True} and not any(row.label for row in rows if row.split == "test"):
        count = len(rows)
        rows = [row for row in rows if row.split == "train"]
        if len(rows) < count:
            ignored = [*ignored, f"{count - len(rows):,} test images without labels"]
    for row in rows:
        if bool(row.label) != bool(rows[0].label):
            has, first = ("a", "none") if row.label else ("no", "one")
            raise ValueError(
                f"{archive.place(row.name)} has {has} label, but the first image has {first}; give"
                " a label to all images, or to none"
            )
    return listing_of(root, rows, archive.place, order=order, ignored=ignored, archive=archive)
