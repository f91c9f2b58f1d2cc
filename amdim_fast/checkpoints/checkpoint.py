"""Checkpoints: written atomically, read without running code, from this package and its forebears.

``load_checkpoint`` reads what ``save_checkpoint`` writes, the public code's files (old and new
names, with or without hyperparameters) and those of lightning-bolts.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import secrets
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amdim_fast.checkpoints.formats import CheckpointError, find_state, model_arguments, plain_state
from amdim_fast.model.amdim import AMDIM


class _Inert:
    """Takes the place of lightning-bolts' loss modules, which its files keep as objects."""


_BOLTS_LOSSES = "pl_bolts.losses.self_supervised_learning"
_INERT_GLOBALS: list[Any] = [
    (_Inert, f"{_BOLTS_LOSSES}.FeatureMapContrastiveTask"),
    (_Inert, f"{_BOLTS_LOSSES}.AmdimNCELoss"),
]
_PLAIN_TYPES = (bool, int, float, str, bytes, type(None), Tensor, nn.Parameter)


def save_checkpoint(path: str | os.PathLike[str], model: AMDIM, /, **extra: Any) -> None:
    """Write a model and, beside it, whatever else a run needs to go on.

    The file holds ``model`` (the state dict), ``hyperparams`` and the extras under their names. It
    is written beside ``path``, flushed to disk and renamed, so ``path`` is always either the old
    file or the complete new one; when writing fails, nothing new stays.

    Args:
        path: where to; its folder exists.
        model: the AMDIM itself, not a wrapper of it.
        extra: tensors, plain values, and lists, tuples and dicts of them, such as
            ``optimizer=optimizer.state_dict(), step=step``.

    Raises:
        TypeError: model is not an AMDIM.
        CheckpointError: an extra has a reserved name or a value that could not be read back.
        OSError: the file cannot be written.
    """
    if not isinstance(model, AMDIM):
        name = type(model).__name__
        raise TypeError(f"model is a {name}; it should be the AMDIM itself, such as wrapper.module")
    if reserved := {"model", "hyperparams"} & extra.keys():
        raise CheckpointError(f"extra {reserved.pop()!r} has a reserved name; give it another")
    hyperparams = model.hyperparams
    for name, value in _leaves("", {"hyperparams": hyperparams, **extra}):
        if type(value) not in _PLAIN_TYPES:
            raise CheckpointError(
                f"the value for {name} is a {type(value).__module__}.{type(value).__name__}; it "
                "should be a tensor or a plain Python value"
            )
    contents = {"model": model.state_dict(), "hyperparams": hyperparams, **extra}
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; it should be the name of a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is no folder; create it to save {target.name}")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def read_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu"
) -> dict[str, Any]:
    """The contents of a checkpoint, as stored; no code in the file is run.

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
        with torch.serialization.safe_globals(_INERT_GLOBALS):
            contents = torch.load(path, map_location=map_location, weights_only=True)
    except (MemoryError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise CheckpointError(_unreadable(path, error)) from error
    if not isinstance(contents, dict):
        raise CheckpointError(
            f"{path} holds a {type(contents).__name__}, not a checkpoint; give a file with a model"
        )
    return contents


def load_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu"
) -> AMDIM:
    """The model that a checkpoint holds, in training mode as built.

    Sizes that the file does not name are read off its weights; use_bn then is whether the blocks'
    BatchNorms have ever run, and tclip is 20. The probes are there if the file has their weights.
    Unlike in the public code, tclip and use_bn are honoured. The default random generator is left
    as it was.

    Args:
        path: a file of ``save_checkpoint``, of the public code or of lightning-bolts; a bare state
            dict of a model or an encoder works too.
        map_location: device for the model.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint, or not one of an AMDIM; names the keys.
    """
    contents = read_checkpoint(path)
    state = plain_state(find_state(contents, path), path)
    try:
        arguments = model_arguments(contents, state)
        with torch.random.fork_rng(devices=[]):
            model = AMDIM(**arguments)
    except KeyError as error:
        raise CheckpointError(
            f"{path} has no weight {error.args[0]!r}; it is no AMDIM of 32, 64 or 128 px"
        ) from error
    except (IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has hyperparameters of no AMDIM: {error}") from error
    expected = model.state_dict()
    problems = [
        f"{problem}: {', '.join(names)}"
        for problem, names in {
            "missing": sorted(expected.keys() - state.keys()),
            "unexpected": sorted(state.keys() - expected.keys()),
            "of another shape": sorted(
                f"{name} {list(state[name].shape)} instead of {list(value.shape)}"
                for name, value in expected.items()
                if name in state and state[name].shape != value.shape
            ),
        }.items()
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit its hyperparameters {model.hyperparams}; {'; '.join(problems)}"
        )
    model.load_state_dict(state)
    return model.to(map_location)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value and key in nested containers, with where it is."""
    if type(value) in (dict, OrderedDict, Counter):
        for key, item in value.items():
            yield from _leaves(f"{name}[{key!r}]", key)
            yield from _leaves(f"{name}[{key!r}]", item)
    elif type(value) in (list, tuple, torch.Size):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}[{index}]", item)
    else:
        yield name, value


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint file in it")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the path of a checkpoint file")
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path} is truncated; copy it again or use an earlier file")
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise CheckpointError(f"{path} is a zip of other files; give a checkpoint file")
    elif start[:1] != b"\x80":
        what = "not a checkpoint" if start else "empty"
        raise CheckpointError(f"{path} is {what}; give a file that torch.save wrote")


def _unreadable(path: Path, error: Exception) -> str:
    blocked = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and blocked:
        return (
            f"{path} holds a Python object ({blocked[1]}), which is not read because that could "
            "run code; where you trust the file, save its tensors and plain values anew"
        )
    return (
        f"{path} is damaged, truncated or no checkpoint ({type(error).__name__} in torch.load); "
        "copy it again or use an earlier file"
    )
