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
    **{name: (name,) for name in ("components", "mixture_hidden", "tau", "alpha")},
}
_WRAPPERS = re.compile(r"^(?:module\.|encoder\.|evaluator\.)*")
# The public code's sampling masks, and BatchNorms that it once built and never used.
_DROPPED = re.compile(r"^g2l_loss\.masks_r5$|^encoder\.layer_list\.[01]\.bn\.")


def find_state(contents: dict[str, Any], path: object) -> Mapping[str, Tensor]:
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


def plain_state(state: Mapping[str, Tensor], path: object) -> dict[str, Tensor]:
    """The state dict with this package's names."""
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


def model_arguments(contents: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of AMDIM: as the file states them, otherwise inferred from its weights.

    Raises:
        KeyError: a weight that every encoder has is missing; its name.
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
