"""What versions of the public code and of lightning-bolts wrote, as today's encoder has it.

The versions of the public code's ``model.py`` that wrote files, by their dates in its history:

* 14 June 2019, two versions: with ``use_bn`` the heads had no BatchNorm inside, and at 128 px the
  blocks had none; without ``use_bn`` the last layer had none.
* 14 June to 10 July 2019: today's encoder.
* 10 to 12 July 2019: the first convolutions had no bias, and BatchNorms that were never used.
* From 12 July 2019 on: today's encoder. The never used BatchNorms were there until 23 July 2019;
  lightning-bolts has them in all its versions.

Up to 10 July 2019 there were two more probes, and up to 12 July 2019 the penalty weighed 4e-2.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amdim_fast.checkpoints.formats import CheckpointError
from amdim_fast.checkpoints.weights import check_weights

# Sampling masks of the loss; BatchNorms that were never used; probes on the mean of the 5x5 map.
_DROPPED = re.compile(
    r"^g2l_loss\.masks_r5$"
    r"|^encoder\.layer_list\.[01]\.bn\."
    r"|^evaluator\.block_bop_(?:mlp|lin)\.block_forward\.\d+\.\w+$"
)
_OLD_HEAD = re.compile(r"^(encoder\.rkhs_block_[57])\.bn1\.")
_OLD_REG_WEIGHT = 4e-2


class Updated(NamedTuple):
    """A state dict under today's names, and arguments of ``AMDIM`` that its version implies."""

    state: dict[str, Tensor]
    arguments: dict[str, Any]


def updated(state: dict[str, Tensor], path: object) -> Updated:
    """The state dict of any version as today's encoder has it, without what it has not.

    Args:
        state: under this package's names, or older ones of the same modules.
        path: for error messages.

    Raises:
        CheckpointError: it is of a version whose features today's encoder cannot give, or a weight
            is not one that a model can take.
    """
    old_heads = any(map(_OLD_HEAD.match, state))
    unused = any(name.startswith("encoder.layer_list.0.bn.") for name in state)
    kept = {}
    for name, value in state.items():
        new = _OLD_HEAD.sub(r"\1.bn_hid.", name)
        if not _DROPPED.match(name):
            kept[name if new in state else new] = value
    check_weights(kept, path)
    if old_heads and not unused:
        _check_first_versions(kept, path)
        return Updated(kept, {"reg_weight": _OLD_REG_WEIGHT})
    if unused and "encoder.layer_list.0.conv.bias" not in kept:
        return Updated(_no_biases(kept) | kept, {"reg_weight": _OLD_REG_WEIGHT})
    return Updated(kept, {})


def _check_first_versions(state: dict[str, Tensor], path: object) -> None:
    """Raise for files of 14 June 2019, known by which BatchNorms ever ran."""

    def ran(pattern: str) -> bool:
        counter = re.compile(rf"^encoder\.{pattern}\.bn\.num_batches_tracked$")
        return any(bool(value.any()) for name, value in state.items() if counter.match(name))

    blocks = ran(r"layer_list\.\d+\.layer_list\.\d+\.bn1")
    if ran(r"rkhs_block_[57]\.bn_out") and not ran(r"layer_list\.\d+"):
        what = "the BatchNorm of the last layer was off (use_bn=False): r1 would be wrong"
    elif blocks and not ran(r"rkhs_block_[57]\.bn_hid"):
        what = "the heads had no BatchNorm inside (use_bn=True): r5 and r7 would be wrong"
    else:
        return
    raise CheckpointError(
        f"{path} is of the public code's first versions, of 14 June 2019, where {what}; take a file"
        " of a later version, or read it with that code"
    )


def _no_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases of zeros for first convolutions without any."""
    found = {}
    for index in (0, 1):
        weight = state.get(f"encoder.layer_list.{index}.conv.weight")
        if weight is not None:
            found[f"encoder.layer_list.{index}.conv.bias"] = torch.zeros_like(weight[:, 0, 0, 0])
    return found
