"""Checkpoints as files of ``torch.save``: written atomically, read without running code."""

from __future__ import annotations

import os
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amdim_fast.checkpoints.archive import check_archive
from amdim_fast.checkpoints.formats import CheckpointError
from amdim_fast.files import written_whole


class _Inert:
    """Stands for an object of a library: its class is not imported and its contents are dropped."""

    def __new__(cls, *_contents: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_contents: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


# What files of lightning-bolts hold beside weights: callbacks, losses, encoders, paths.
_INERT_MODULES = (
    *("pl_bolts.", "pytorch_lightning.", "lightning.", "lightning_fabric."),
    *("amdim_fast.", "torch.nn.modules.", "pathlib."),
)
_MOST_INERT_NAMES = 200
_AS_DICT = [(OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict")]
_PLAIN_TYPES = (bool, int, float, str, bytes, type(None), Tensor, nn.Parameter)


def write_checkpoint(path: str | os.PathLike[str], contents: Mapping[str, Any]) -> None:
    """Write tensors and plain values for ``read_checkpoint``.

    The file is written beside ``path``, flushed to disk and renamed, so ``path`` is always either
    the old file or the complete new one; if writing fails, nothing is left behind. Symbolic links
    are followed.

    Args:
        path: of the file; its folder must exist.
        contents: tensors, plain values, and lists, tuples and dicts of them.

    Raises:
        CheckpointError: a value could not be read back; names where it is.
        OSError: the file cannot be written.
    """
    for place, value in _leaves("", contents):
        if type(value) not in _PLAIN_TYPES:
            raise CheckpointError(
                f"the value for {place} is a {type(value).__module__}.{type(value).__name__}; it"
                " must be a tensor or a plain Python value"
            )
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; it must be the name of a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not a folder; create it to save {target.name}")
    with written_whole(target) as file:
        torch.save(contents, file)


def read_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu"
) -> dict[str, Any]:
    """The contents of a checkpoint, as stored. Code in the file is not run.

    Checksums of the file are compared first. Objects of the libraries whose checkpoints are known
    are replaced by empty ones; any other object is an error.

    Args:
        path: a file of ``save_checkpoint``, of the public code or of lightning-bolts.
        map_location: device for the tensors.

    Raises:
        FileNotFoundError: there is no such file. CheckpointError: it is not a checkpoint.
    """
    path = Path(path)
    torch.empty(0, device=map_location)
    _check_file(path)
    try:
        contents = _load(path, map_location)
    except (MemoryError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise CheckpointError(_unreadable(path, error)) from error
    if not isinstance(contents, dict):
        raise CheckpointError(
            f"{path} holds a {type(contents).__name__}, not a checkpoint; give a file with a model"
        )
    return contents


def _load(path: Path, map_location: str | torch.device) -> Any:
    """``torch.load``, again with one more inert name wherever it meets one."""
    names: set[str] = set()
    while True:
        inert: list[Any] = [*_AS_DICT, *((_Inert, name) for name in names)]
        try:
            with torch.serialization.safe_globals(inert):
                return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            name = _refused_name(error)
            if name is None or name in names or not name.startswith(_INERT_MODULES):
                raise
            if len(names) == _MOST_INERT_NAMES:
                raise
            names.add(name)


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value and key in nested containers, each with its place."""
    if type(value) in (dict, OrderedDict, Counter):
        for key, item in value.items():
            yield from _leaves(f"{place}[{key!r}]", key)
            yield from _leaves(f"{place}[{key!r}]", item)
    elif type(value) in (list, tuple, torch.Size):
        for index, item in enumerate(value):
            yield from _leaves(f"{place}[{index}]", item)
    else:
        yield place, value


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint file in it")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the path of a checkpoint file")
    if not path.is_file():
        raise CheckpointError(f"{path} is a device or a pipe; give a checkpoint file")
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        check_archive(path)
    elif start[:1] != b"\x80":
        what = "not a checkpoint" if start else "empty"
        raise CheckpointError(f"{path} is {what}; give a file that torch.save wrote")


def _unreadable(path: Path, error: Exception) -> str:
    refused = _refused_name(error)
    if refused is not None:
        return (
            f"{path} holds a Python object ({refused}), which is not read because that could"
            " run code; if you trust the file, save its tensors and plain values again"
        )
    if "persistent_load of storage" in str(error):
        return (
            f"{path} holds a module as an object, in torch's format before 1.6, which is not read;"
            " save its state_dict again with the code that wrote it"
        )
    return (
        f"{path} is damaged, truncated or not a checkpoint ({type(error).__name__} in torch.load);"
        " copy it again or use an earlier file"
    )


def _refused_name(error: Exception) -> str | None:
    """The name of the object that ``torch.load`` refuses to make."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found and isinstance(error, pickle.UnpicklingError) else None
