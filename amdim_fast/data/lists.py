"""Images that a text file lists, with their classes and splits."""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Iterator
from pathlib import Path

from amdim_fast.data.folders import Listing
from amdim_fast.data.labels import SPLITS, Row, listing_of

SUFFIXES = (".txt", ".csv", ".tsv")
PATHS = ("path", "file_name")

Given = tuple[int, str, str, str]  # line, path, label, split


def is_list(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file whose name ends as a list's does."""
    return Path(path).suffix.lower() in SUFFIXES and Path(path).is_file()


def read_list(path: str | os.PathLike[str]) -> Listing:
    """The images that a text file lists, in its order.

    ``.txt`` has a path in each line and, perhaps, a tab and a label. ``.csv`` and ``.tsv`` have a
    first line with names of columns, in any case: ``path``, or ``file_name`` as in ``metadata.csv``
    of Hugging Face's image folders, and, perhaps, ``label`` and ``split``, train or test, train if
    empty; others are not read. Paths are relative to the folder of the list, absolute, or of the
    home folder (``~/``); spaces around them are not theirs unless there is such a file. Labels are
    names of classes, in the order of numbers if all are whole numbers and otherwise sorted; every
    image has one, or none has. A single class is no label. Text is UTF-8; other bytes of paths are
    kept.

    Raises:
        ValueError: a line or its file is not as it should be; says which. OSError: the list cannot
            be read.
    """
    path = Path(os.path.abspath(path))
    try:
        _check_encoding(path)
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = list(_plain_rows(file) if path.suffix.lower() == ".txt" else _rows(path, file))
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror})") from None
    except csv.Error as error:
        raise ValueError(f"{path} is not a table of text ({error})") from None
    for line, *_, split in rows:
        if split not in SPLITS:
            raise ValueError(
                f"line {line} of {path} has the split {split!r}; it must be train or test"
            )
    if not any(split == "train" for *_, split in rows):
        raise ValueError(f"{path} lists no training images")
    is_labeled = bool(rows[0][2])
    found: list[Row] = []
    for line, given, label, split in rows:
        where = f"line {line} of {path}"
        name = _file_name(path.parent, given)
        if name is None:
            hint = "; a label must follow a tab" if _has_label_after_space(path, given) else ""
            raise ValueError(f"{where} names {given!r}, which is not a file{hint}")
        if bool(label) != is_labeled:
            has, first = ("a", "none") if label else ("no", "one")
            raise ValueError(
                f"{where} has {has} label, but the first image has {first}; give a label to all"
                " images, or to none"
            )
        found.append(Row(line, name, label, split))
    return listing_of(path.parent, found, lambda line: f"line {line} of {path}")


def _check_encoding(path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise ValueError(f"{path} is UTF-16 text; save it as UTF-8")


def _file_name(folder: Path, given: str) -> str | None:
    """The path that a cell means, or None if there is no such file."""
    stripped = given.strip()
    for name in (given, stripped, os.path.expanduser(stripped)):
        if name and os.path.isfile(folder / name):
            return name
    return None


def _has_label_after_space(path: Path, given: str) -> bool:
    name = given.strip().rpartition(" ")[0]
    return path.suffix.lower() == ".txt" and _file_name(path.parent, name) is not None


def _plain_rows(file: Iterator[str]) -> Iterator[Given]:
    for number, line in enumerate(file, 1):
        name, _, label = line.rstrip("\r\n").partition("\t")
        if line.strip():
            yield number, name, label.strip(), "train"


def _rows(path: Path, file: Iterator[str]) -> Iterator[Given]:
    is_tabs = path.suffix.lower() == ".tsv"
    table = csv.reader(file, delimiter="\t" if is_tabs else ",", skipinitialspace=True)
    names = [name.strip().lower() for name in next(table, [])]
    if sum(name in PATHS for name in names) != 1:
        raise ValueError(
            f"{path} has the columns {', '.join(names) or 'none'}; its first line must name one"
            f" {' or '.join(PATHS)}, and may name label and split, with"
            f" {'tabs' if is_tabs else 'commas'} between"
        )
    for cells in table:
        if not any(cells):
            continue
        if len(cells) != len(names):
            raise ValueError(
                f"line {table.line_num} of {path} has {len(cells)} columns; it must have"
                f" {len(names)}, as the first line"
            )
        given = dict(zip(names, cells, strict=True))
        name = given[PATHS[0]] if PATHS[0] in given else given[PATHS[1]]
        label, split = given.get("label", ""), given.get("split", "")
        yield table.line_num, name, label.strip(), split.strip().lower() or "train"
