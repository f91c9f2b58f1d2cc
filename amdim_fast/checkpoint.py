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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amdim_fast.model import AMDIM


class CheckpointError(ValueError):
    """A file is not a checkpoint that can be read, or contents not ones that can be stored."""


class _Inert:
    """Takes the place of lightning-bolts' loss modules, which its files keep as objects."""


_BOLTS_LOSSES = "pl_bolts.losses.self_supervised_learning"
_INERT_GLOBALS: list[Any] = [
    (_Inert, f"{_BOLTS_LOSSES}.FeatureMapContrastiveTask"),
    (_Inert, f"{_BOLTS_LOSSES}.AmdimNCELoss"),
]
_PLAIN_TYPES = (bool, int, float, str, bytes, type(None), Tensor, nn.Parameter)

# Our argument: the names it has had in the public code and in lightning-bolts, newest first.
_ARGUMENT_NAMES = {
    "size": ("encoder_size", "image_height"),
    "ndf": ("ndf", "encoder_feature_dim"),
    "n_rkhs": ("n_rkhs", "embedding_fx_dim"),
    "depth": ("n_depth", "res_block_depth", "conv_block_depth"),
    "use_bn": ("use_bn",),
    "in_channels": ("in_channels", "image_channels"),
    "tclip": ("tclip",),
    "reg_weight": ("reg_weight",),
}
_WRAPPERS = re.compile(r"^(?:module\.|encoder\.|evaluator\.)*")
# The public code's sampling masks, and BatchNorms it once built in the first convolutions, unused.
_DROPPED = re.compile(r"^g2l_loss\.masks_r5$|^encoder\.layer_list\.[01]\.bn\.")


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
    state = _plain_state(_find_state(contents, path), path)
    try:
        arguments = _arguments(contents, state)
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


def _find_state(contents: dict[str, Any], path: object) -> Mapping[str, Tensor]:
    """The state dict: under "model", under "state_dict" (Lightning), or the file itself."""
    for state in (contents.get("model"), contents.get("state_dict"), contents):
        if isinstance(state, Mapping) and state and all(map(_is_weight, state.items())):
            return state
    raise CheckpointError(
        f"{path} has the keys {sorted(map(str, contents))} and no state dict under 'model' or "
        "'state_dict'; give an AMDIM checkpoint"
    )


def _is_weight(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _plain_state(state: Mapping[str, Tensor], path: object) -> dict[str, Tensor]:
    """The state dict under this package's names."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        bare = name.replace("_orig_mod.", "")
        inner = _WRAPPERS.sub("", bare)
        if inner.startswith(("layer_list.", "rkhs_block_")):
            bare = "encoder." + re.sub(r"^(rkhs_block_[57])\.bn1\.", r"\1.bn_hid.", inner)
        elif inner.startswith(("block_glb_mlp.", "block_glb_lin.")):
            bare = "evaluator." + inner
        else:
            bare = re.sub(r"^(module\.)+", "", bare)
        if _DROPPED.match(bare):
            continue
        if bare in plain:
            raise CheckpointError(f"{path} holds {bare} twice; keep one of its encoders")
        plain[bare] = value
    return plain


def _arguments(contents: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of AMDIM: as the file names them, else read off its weights.

    Raises KeyError with the name of a weight that an encoder has and this file has not.
    """
    first = state["encoder.layer_list.0.conv.weight"]
    second = "encoder.layer_list.1."
    size = 32 if f"{second}conv1.weight" in state else 64
    if f"{second}conv.weight" in state:
        size = 128
    block = "encoder.layer_list.2.layer_list."
    counters = [name for name in state if name.endswith(".bn1.bn.num_batches_tracked")]
    arguments: dict[str, Any] = {
        "size": size,
        "ndf": first.shape[0],
        "n_rkhs": state["encoder.rkhs_block_5.conv2.weight"].shape[0],
        "depth": sum(f"{block}{index}.conv1.weight" in state for index in range(len(state))),
        "use_bn": any(bool(state[name].any()) for name in counters),
        "in_channels": first.shape[1],
    }
    stored = contents.get("hyperparams") or contents.get("hyper_parameters") or {}
    for argument, names in _ARGUMENT_NAMES.items():
        for name in reversed(names):
            if name in stored:
                arguments[argument] = stored[name]
    arguments["use_bn"] = bool(arguments["use_bn"])
    classes = state.get("evaluator.block_glb_lin.block_forward.2.weight")
    arguments["n_classes"] = None if classes is None else classes.shape[0]
    return arguments
