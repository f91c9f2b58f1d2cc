"""Rows of the block table that were measured on the user's own GPU: a small JSON file.

The environment variable AMDIM_FAST_BLOCKS names it; ``benchmarks/autotune_nce.py`` writes it. Its
rows come before the built-in ones. Each process reads it once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from amdim_fast.kernels.nce_tiles import Blocks, Tile

VARIABLE = "AMDIM_FAST_BLOCKS"
ARITHMETICS = ("half", "tf32", "ieee")
FIELDS = ("architecture", "arithmetic", "small_width", *Blocks._fields)
# Least and largest value of each size, for tiles that multiply and for those over products; all
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
    """What a row is for: "sm_90" and the like, "half", "tf32" or "ieee", and D <= SMALL_WIDTH."""

    architecture: str
    arithmetic: str
    small_width: bool


def measured_rows() -> Mapping[Key, Blocks]:
    """The rows of the file that AMDIM_FAST_BLOCKS names; none where it is unset or empty.

    Raises:
        ValueError: the file is not there or not as it should be; the sentence says where.
    """
    name = os.environ.get(VARIABLE)
    return _read_once(name) if name else {}


@lru_cache
def _read_once(name: str) -> Mapping[Key, Blocks]:
    try:
        return {key: blocks for key, (blocks, _) in read_file(Path(name)).items()}
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}; unset it to use the built-in rows") from error


def read_file(path: Path) -> dict[Key, tuple[Blocks, Any]]:
    """Key -> (blocks, note) of every row; ValueError with one sentence about the first fault."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must be a list of rows")
    return dict(_row(row, f"row {index} of {path}") for index, row in enumerate(content))


def write_row(path: Path, key: Key, blocks: Blocks, note: Any) -> None:
    """Put a row in the file, in place of one for the same key; the file is replaced as a whole."""
    rows = read_file(path) if path.exists() else {}
    rows[key] = (blocks, note)
    content = [
        key._asdict() | {n: _plain(value) for n, value in blocks._asdict().items()} | {"note": note}
        for key, (blocks, note) in sorted(rows.items(), key=lambda row: row[0])
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _plain(value: bool | Tile) -> Any:
    return value._asdict() if isinstance(value, Tile) else value


def _row(row: Any, where: str) -> tuple[Key, tuple[Blocks, Any]]:
    _check_fields(row, {*FIELDS}, where, optional={"note"})
    key = Key(*(row[field] for field in Key._fields))
    if not isinstance(key.architecture, str) or not key.architecture.startswith("sm_"):
        raise ValueError(f"architecture in {where} is {key.architecture!r}; it must be sm_<number>")
    if key.arithmetic not in ARITHMETICS:
        names = ", ".join(ARITHMETICS)
        raise ValueError(f"arithmetic in {where} is {key.arithmetic!r}; it must be one of {names}")
    for name in ("small_width", "fused"):
        _check_flag(row[name], f"{name} in {where}")
    tiles = (_tile(row[name], name, where) for name in Blocks._fields[1:])
    return key, (Blocks(row["fused"], *tiles), row.get("note"))


def _tile(fields: Any, name: str, where: str) -> Tile:
    where = f"{name} in {where}"
    _check_fields(fields, {*Tile._fields}, where)
    _check_flag(fields["descriptors"], f"descriptors of {where}")
    for field, (least, most) in (READ_LIMITS if name.startswith("read") else LIMITS).items():
        value = fields[field]
        kind = "whole number" if field == "stages" else "power of two"
        right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        if not right or (kind == "power of two" and value & (value - 1)):
            wanted = f"a {kind} from {least} to {most}" if most else "0"
            raise ValueError(f"{field} of {where} is {value!r}; it must be {wanted}")
    return Tile(**fields)


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
