"""Rows of the tile table that were measured on the user's own GPU: a small JSON file.

The environment variable AMDIM_FAST_BLOCKS names it; ``amdim_fast.bench.autotune`` writes it. Its
rows come before the built-in ones. Each process reads it once. A tile's swizzle is "group" there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from amdim_fast.files import read_whole, written_whole
from amdim_fast.kernels.nce_tiles import Tile, TileSet

VARIABLE = "AMDIM_FAST_BLOCKS"
ARITHMETICS = ("half", "tf32", "ieee")
FIELDS = ("architecture", "arithmetic", "small_width", *TileSet._fields)
TILE_FIELDS = tuple("group" if name == "swizzle" else name for name in Tile._fields)
# Least and largest value of each size, for tiles of fused kernels and for those over products. All
# but stages are powers of two.
LIMITS = {
    "rows": (16, 256),
    "columns": (16, 256),
    "width": (16, 256),
    "group": (1, 64),
    "warps": (1, 16),
    "stages": (1, 8),
}
READ_LIMITS = LIMITS | {"rows": (1, 256), "columns": (16, 4096), "width": (0, 0)}


class Key(NamedTuple):
    """What a row is for: e.g. "sm_90"; "half", "tf32" or "ieee"; and whether D <= SMALL_WIDTH."""

    architecture: str
    arithmetic: str
    small_width: bool


def measured_rows() -> Mapping[Key, TileSet]:
    """The rows of the file that AMDIM_FAST_BLOCKS names; none if it is unset or empty.

    Raises:
        ValueError: the file cannot be read or has a fault; the sentence says where.
    """
    name = os.environ.get(VARIABLE)
    return _read_once(name) if name else {}


@lru_cache
def _read_once(name: str) -> Mapping[Key, TileSet]:
    try:
        return {key: tile_set for key, (tile_set, _) in read_file(Path(name)).items()}
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}; unset it to use the built-in rows") from error


def read_file(path: Path) -> dict[Key, tuple[TileSet, Any]]:
    """Key -> (tiles, note) of every row.

    Raises:
        ValueError: one sentence about the first fault.
    """
    try:
        content = json.loads(read_whole(path))
    except OSError as error:
        raise ValueError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must be a list of rows")
    return dict(_row(row, f"row {index} of {path}") for index, row in enumerate(content))


def write_row(path: Path, key: Key, tile_set: TileSet, note: Any) -> None:
    """Put a row in the file, in place of one for the same key; the file is replaced as a whole."""
    rows = read_file(path) if path.exists() else {}
    rows[key] = (tile_set, note)
    content = [
        key._asdict()
        | {field: _plain(value) for field, value in tile_set._asdict().items()}
        | {"note": note}
        for key, (tile_set, note) in sorted(rows.items(), key=lambda row: row[0])
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def _plain(value: bool | Tile) -> Any:
    return dict(zip(TILE_FIELDS, value, strict=True)) if isinstance(value, Tile) else value


def _row(row: Any, where: str) -> tuple[Key, tuple[TileSet, Any]]:
    _check_fields(row, {*FIELDS}, where, optional={"note"})
    key = Key(*(row[field] for field in Key._fields))
    if not isinstance(key.architecture, str) or not key.architecture.startswith("sm_"):
        raise ValueError(f"architecture in {where} is {key.architecture!r}; it must be sm_<number>")
    if key.arithmetic not in ARITHMETICS:
        names = ", ".join(ARITHMETICS)
        raise ValueError(f"arithmetic in {where} is {key.arithmetic!r}; it must be one of {names}")
    for name in ("small_width", "fused"):
        _check_flag(row[name], f"{name} in {where}")
    tiles = (_tile(row[name], name, where) for name in TileSet._fields[1:])
    return key, (TileSet(row["fused"], *tiles), row.get("note"))


def _tile(fields: Any, name: str, where: str) -> Tile:
    where = f"{name} in {where}"
    _check_fields(fields, {*TILE_FIELDS}, where)
    _check_flag(fields["descriptors"], f"descriptors of {where}")
    for field, (least, most) in (READ_LIMITS if name.startswith("read") else LIMITS).items():
        value = fields[field]
        kind = "whole number" if field == "stages" else "power of two"
        right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        if not right or (kind == "power of two" and value & (value - 1)):
            wanted = f"a {kind} from {least} to {most}" if most else "0"
            raise ValueError(f"{field} of {where} is {value!r}; it must be {wanted}")
    return Tile(*(fields[field] for field in TILE_FIELDS))


def _check_flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{where} is {value!r}; it must be true or false")


def _check_fields(
    fields: Any, expected: set[str], where: str, optional: frozenset[str] | set[str] = frozenset()
) -> None:
    if not isinstance(fields, dict):
        raise ValueError(f"{where} is a {type(fields).__name__}; it must be an object")
    missing, unknown = expected - fields.keys(), fields.keys() - expected - optional
    if missing or unknown:
        fault = f"has no {min(missing)}" if missing else f"has an unknown field {min(unknown)}"
        raise ValueError(f"{where} {fault}; its fields are {', '.join(sorted(expected))}")
