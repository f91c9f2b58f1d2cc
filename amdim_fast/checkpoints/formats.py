"""Names in the checkpoints of the public code and of lightning-bolts, and their names here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class CheckpointError(ValueError):
    """A file cannot be read as a checkpoint, or contents cannot be stored as one."""


# Argument of AMDIM: its names in the public code and in lightning-bolts, newest first.
_ARGUMENT_NAMES = {
    "size": ("encoder_size", "image_height"),
    "ndf": ("ndf", "encoder_feature_dim"),
    "n_rkhs": ("n_rkhs", "embedding_fx_dim"),
    "depth": ("n_depth", "res_block_depth", "conv_block_depth"),
    "use_bn": ("use_bn",),
    "in_channels": ("in_channels", "image_channels"),
    "tclip": ("tclip",),
    "reg_weight": ("reg_weight",),
    **{name: (name,) for name in ("components", "mixture_hidden", "tau", "alpha", "backbone")},
}
_SHOWN_KEYS = 20
_WRAPPERS = re.compile(r"^(?:module\.|encoder\.|evaluator\.)*")


def find_state(contents: dict[str, Any], path: object) -> Mapping[str, Tensor]:
    """The state dict: under "model", under "state_dict" (Lightning), or the file itself."""
    for state in (contents.get("model"), contents.get("state_dict"), contents):
        if isinstance(state, Mapping) and state and all(map(_is_weight, state.items())):
            return state
    keys = sorted(map(str, contents))
    left = len(keys) - _SHOWN_KEYS
    shown = f"{keys[:_SHOWN_KEYS]}" + (f" and {left} more" if left > 0 else "")
    raise CheckpointError(
        f"{path} has the keys {shown} and no state dict under 'model' or 'state_dict'; give an"
        " AMDIM checkpoint"
    )


def _is_weight(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def plain_state(state: Mapping[str, Tensor], path: object) -> dict[str, Tensor]:
    """The state dict with the names of this package's modules, or older ones of theirs."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        bare = name.replace("_orig_mod.", "")
        inner = _WRAPPERS.sub("", bare)
        if inner.startswith(("layer_list.", "rkhs_block_")):
            bare = "encoder." + inner
        elif inner.startswith(("block_glb_", "block_bop_")):
            bare = "evaluator." + inner
        else:
            bare = re.sub(r"^(module\.)+", "", bare)
        if bare in plain:
            raise CheckpointError(f"{path} holds {bare} twice; keep one of its encoders")
        plain[bare] = value
    return plain


def stated_arguments(contents: Mapping[str, Any], path: object) -> dict[str, Any]:
    """Arguments of AMDIM that the file states, under their names here.

    Raises:
        CheckpointError: they are not plain values under names.
    """
    stated: dict[str, Any] = {}
    for key in ("hyperparams", "hyper_parameters"):
        found = contents.get(key)
        if found is None:
            continue
        if not isinstance(found, Mapping):
            kind = type(found).__name__
            raise CheckpointError(f"{path} has a {kind} under {key!r}; it must be a dict")
        stated = stated or dict(found)
    arguments: dict[str, Any] = {}
    for argument, names in _ARGUMENT_NAMES.items():
        for name in names:
            if name not in stated:
                continue
            value = stated[name]
            if name == "backbone":
                _check_backbone(value, path)
            elif type(value) not in (bool, int, float, type(None)):
                kind = type(value).__name__
                raise CheckpointError(f"{path} has a {kind} for {name}; it must be a plain number")
            arguments.setdefault(argument, value)
    return arguments


def stated_class_names(contents: Mapping[str, Any], path: object) -> tuple[str, ...] | None:
    """Names of the probes' classes in the order of their labels; None if the file states none.

    Raises:
        CheckpointError: they are not different names.
    """
    names = contents.get("class_names")
    if names is None:
        return None
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not is_list or len(set(names)) != len(names):
        raise CheckpointError(f"{path} has class_names that are not a list of different names")
    return tuple(names)


def _check_backbone(name: object, path: object) -> None:
    if name is None:
        raise CheckpointError(
            f"{path} is of an AMDIM over a network that was given as a module, which no file can"
            " rebuild; build it again and load the weights under 'model' with load_state_dict"
        )
    if not isinstance(name, str):
        raise CheckpointError(f"{path} has a {type(name).__name__} for backbone; it must be text")


def model_arguments(
    stated: Mapping[str, Any], state: Mapping[str, Tensor], path: object
) -> dict[str, Any]:
    """Arguments of AMDIM: sizes are those of the weights, the rest is as stated.

    Raises:
        KeyError: a weight that every encoder has is missing; its name. CheckpointError: a stated
            size is not that of the weights.
    """
    over = "backbone" in stated
    sizes = _widths_of(state) if over else _sizes_of(state) | _widths_of(state)
    for name, found in sizes.items():
        said = stated.get(name, found)
        if said != found and not (name == "mixture_hidden" and said is None):
            raise CheckpointError(
                f"{path} says that {name} is {said!r}, but its weights are those of {found!r}"
            )
    arguments = {**stated, **sizes}
    if not over:
        counters = [name for name in state if name.endswith(".bn1.bn.num_batches_tracked")]
        ran = any(bool(state[name].any()) for name in counters)
        arguments["use_bn"] = bool(stated.get("use_bn", ran))
    classes = state.get("evaluator.block_glb_lin.block_forward.2.weight")
    arguments["n_classes"] = None if classes is None else classes.shape[0]
    return arguments


def _sizes_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    first = state["encoder.layer_list.0.conv.weight"]
    second = "encoder.layer_list.1."
    size = 32 if f"{second}conv1.weight" in state else 64
    if f"{second}conv.weight" in state:
        size = 128
    block = "encoder.layer_list.2.layer_list."
    return {
        "size": size,
        "ndf": first.shape[0],
        "depth": sum(f"{block}{index}.conv1.weight" in state for index in range(len(state))),
        "in_channels": first.shape[1],
    }


def _widths_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    sizes = {"n_rkhs": state["encoder.rkhs_block_5.conv2.weight"].shape[0]}
    if "mixture.linear_1.weight" in state:
        sizes["mixture_hidden"] = state["mixture.linear_1.weight"].shape[0]
        sizes["components"] = state["mixture.linear_2.weight"].shape[0] // sizes["n_rkhs"]
    return sizes
