"""Checks of the arguments of the contrastive functions and modules, and how the op takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from amdim_fast.checks import whole_number

FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# What autocast casts; float64 stays.
CAST_DTYPES = FEATURE_DTYPES[:3]
NEGATIVES = ("other_images", "same_location")
REDUCTIONS = ("mean", "sum", "none")
BACKENDS = ("auto", "torch", "triton")
PRECISIONS = ("auto", "limbs")
MOST_BYTES = 2**63 - 1


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise unless features are a dense tensor of a type that the losses take."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor")
    if tensor.dtype not in FEATURE_DTYPES:
        raise TypeError(
            f"{name} is {tensor.dtype}; it must be float32, float16, bfloat16 or float64"
        )
    if tensor.layout is not torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{name} is {kind}; it must be dense: {name}.to_dense()")


def of_one_dtype(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors; under autocast, those of several types in its type, as a product takes them."""
    if not all([isinstance(tensor, Tensor) for tensor in tensors]):
        return tensors
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) < 2 or not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return [tensor.to(dtype) if tensor.dtype in CAST_DTYPES else tensor for tensor in tensors]


def check_features(src: Tensor, trg: Tensor, *, more_targets: bool = False) -> None:
    """Raise unless src [B, D] or [S, B, D] and trg [B, L, D] fit together.

    With ``more_targets`` trg may also be [N, L, D], N > B.
    """
    check_tensor("src", src)
    check_tensor("trg", trg)
    if src.dim() not in (2, 3):
        raise ValueError(f"src has shape {_shape(src)}; it must be [B, D] or [S, B, D]")
    if trg.dim() != 3:
        raise ValueError(
            f"trg has shape {_shape(trg)}; it must be [B, L, D], [B, D] or a map [B, D, h, w]"
        )
    if src.dtype != trg.dtype:
        raise TypeError(f"trg is {trg.dtype} and src is {src.dtype}; they must have one dtype")
    if src.device != trg.device:
        raise ValueError(
            f"trg is on {trg.device} and src on {src.device}; they must share a device"
        )
    if src.shape[-1] != trg.shape[-1]:
        raise ValueError(
            f"trg has shape {_shape(trg)} and src {_shape(src)}; their last sizes D must agree"
        )
    if src.shape[-2] != trg.shape[0] and not (more_targets and trg.shape[0] > src.shape[-2]):
        raise ValueError(
            f"trg has {trg.shape[0]} images and src {src.shape[-2]}; trg[b] is the positive of"
            " src[b], so their numbers B must agree" + ", or trg must have more" * more_targets
        )
    for name, tensor in (("src", src), ("trg", trg)):
        if tensor.numel() == 0:
            raise ValueError(f"{name} has shape {_shape(tensor)}; every size must be at least 1")


def check_options(
    clip: float | None, clip_name: str, backend: str, precision: str, memory_budget: int | None
) -> None:
    """Raise unless the options that functions and loss modules share are in range."""
    check_clip(clip_name, clip)
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if memory_budget is not None:
        if not isinstance(memory_budget, int) or isinstance(memory_budget, bool):
            kind = type(memory_budget).__name__
            raise TypeError(f"memory_budget is a {kind}; it must be a whole number of bytes")
        whole_number("memory_budget", memory_budget, least=0)
        if memory_budget > MOST_BYTES:
            raise ValueError(f"memory_budget is {memory_budget}; it must be {MOST_BYTES} or less")


def check_clip(name: str, clip: Any) -> None:
    """Raise unless the clip is None or a number in range; a graph's tensor is looked at later."""
    number = isinstance(clip, int | float)
    if clip is None or (torch.compiler.is_compiling() and not number):
        return
    if not number and (isinstance(clip, str | complex) or not hasattr(clip, "__float__")):
        kind = type(clip).__name__
        raise TypeError(f"{name} is {clip!r}, a {kind}; it must be a number, or None for no clip")
    if not clip > 0:
        raise ValueError(f"{name} is {clip}; it must be greater than 0, or None for no clip")
    # Squares of scores over the clip are numbers of float32. No name, as in clip_value.
    if clip < 1e-6:
        raise ValueError(f"{name} is {clip}; it must be 1e-06 or more, or None for no clip")


def check_weight(name: str, value: float) -> None:
    """Raise unless ``value`` is finite and not negative."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a finite number, 0 or more")


def group_name(group: ProcessGroup | None) -> str | None:
    """The process group as the op takes it, by name."""
    if group is None:
        return None
    if not isinstance(group, ProcessGroup):
        raise TypeError(
            f"group is a {type(group).__name__}; it must be a torch.distributed.ProcessGroup that"
            " this process belongs to, or None"
        )
    return group.group_name


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
