"""Files of features beside the names and labels of their images: NumPy's .npz, and Parquet."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from amdim_fast.files import written_whole
from amdim_fast.optional import require

SUFFIXES = (".npz", ".parquet")
_ROW_GROUP = 64 << 20  # bytes of features


@dataclass(frozen=True)
class ImageTable:
    """What is known of N images.

    Attributes:
        names: N, in the order of the features.
        splits: N, "train" or "test".
        labels: int64 [N], -1 where unknown; None if nothing is labeled.
        classes: names in the order of the labels.
    """

    names: list[str]
    splits: list[str]
    labels: Tensor | None
    classes: tuple[str, ...]

    def check(self, path: Path) -> None:
        """Raise unless ``write_features`` can write this table to a file of that name.

        Raises:
            ValueError: the suffix is another, or a name cannot be stored. ModuleNotFoundError:
                pyarrow is not installed.
        """
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} ends in neither {' nor '.join(SUFFIXES)}; give one of them")
        if path.suffix == ".npz":
            return
        require("pyarrow.parquet", "writing Parquet", "parquet")
        for name in (*self.names, *self.classes):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"{name!r} is not UTF-8, as text in Parquet must be; write .npz"
                ) from None


def write_features(path: Path, table: ImageTable, parts: Iterable[Tensor], width: int) -> None:
    """Write features as they come, whole or not at all.

    .npz holds ``features`` float32 [N, D], ``names`` and ``splits``, text [N], and, if there are
    labels, ``labels`` int64 [N] and ``classes``. Parquet has a row for each image: ``name``,
    ``split``, ``features``, a list of D float32 and, if there are labels, ``label``, null where
    unknown, and ``class``.

    Args:
        path: its suffix chooses the format; ``table.check`` has approved of it.
        table: of N images.
        parts: float32 [n, D] on the CPU, in the same order, N rows together.
        width: D.

    Raises:
        OSError: the file cannot be written.

    Holds 64 MB of features in memory.
    """
    write = _write_npz if path.suffix == ".npz" else _write_parquet
    with written_whole(path) as file:
        write(file, table, parts, width)


def _write_npz(file: BinaryIO, table: ImageTable, parts: Iterable[Tensor], width: int) -> None:
    columns = {"names": np.array(table.names, str), "splits": np.array(table.splits, str)}
    if table.labels is not None:
        columns["labels"] = table.labels.numpy()
        columns["classes"] = np.array(table.classes, str)
    shape = len(table.names), width
    header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for part in parts:
                member.write(part.numpy().tobytes())
        for name, values in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _write_parquet(file: BinaryIO, table: ImageTable, parts: Iterable[Tensor], width: int) -> None:
    arrow: Any = require("pyarrow", "writing Parquet", "parquet")
    parquet: Any = require("pyarrow.parquet", "writing Parquet", "parquet")
    fields = [("name", arrow.string()), ("split", arrow.string())]
    if table.labels is not None:
        fields += [("label", arrow.int64()), ("class", arrow.string())]
    fields.append(("features", arrow.list_(arrow.float32(), width)))
    schema = arrow.schema(fields)
    begin = 0
    with parquet.ParquetWriter(file, schema) as writer:
        for part in _row_groups(parts):
            rows = slice(begin, begin + len(part))
            columns: list[Any] = [table.names[rows], table.splits[rows]]
            if table.labels is not None:
                known = [None if label < 0 else label for label in table.labels[rows].tolist()]
                columns += [known, [None if k is None else table.classes[k] for k in known]]
            flat = arrow.array(part.numpy().reshape(-1))
            columns.append(arrow.FixedSizeListArray.from_arrays(flat, width))
            writer.write_table(arrow.table(columns, schema=schema))
            begin += len(part)


def _row_groups(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same rows in fewer parts; smaller ones would be slow to read."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        if sum(piece.nbytes for piece in held) >= _ROW_GROUP:
            yield torch.cat(held)
            held.clear()
    if held:
        yield torch.cat(held)
