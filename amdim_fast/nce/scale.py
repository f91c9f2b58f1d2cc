"""Scores of another scale than 1 / sqrt(D), such as CLIP's exp(t) and SimCLR's 1 / tau.

The op divides by sqrt(D), so its sources are brought to the scale first. A tensor's gradient is
then autograd's, and its value never leaves the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from amdim_fast.nce.changing import number
from amdim_fast.nce.inputs import FEATURE_DTYPES

TYPES = "a number, or a tensor without dimensions"


def scaled(src: Tensor, scale: Any) -> Tensor:
    """``scale * sqrt(D) * src`` in the dtype of src [..., D], rounded once."""
    scale = number(_checked(scale, src))
    root = math.sqrt(src.shape[-1])
    if not isinstance(scale, Tensor):
        return src * (scale * root)
    # As a half type the factor itself would be rounded.
    wide = torch.promote_types(src.dtype, torch.float32)
    return (src.to(wide) * (scale.to(wide) * root)).to(src.dtype)


def _checked(scale: Any, src: Tensor) -> float | Tensor:
    """The scale as a number or tensor; a tensor's value is not looked at."""
    if isinstance(scale, Tensor):
        if scale.dtype not in FEATURE_DTYPES:
            raise TypeError(
                f"scale is {scale.dtype}; it must be float32, float16, bfloat16 or float64"
            )
        if scale.dim() != 0:
            raise ValueError(f"scale has shape {list(scale.shape)}; it must be {TYPES}")
        if scale.device != src.device:
            raise ValueError(
                f"scale is on {scale.device} and src on {src.device}; they must share a device"
            )
        return scale
    if not isinstance(scale, int | float):
        if isinstance(scale, str | complex) or not hasattr(scale, "__float__"):
            raise TypeError(f"scale is {scale!r}, a {type(scale).__name__}; it must be {TYPES}")
        if torch.compiler.is_compiling():
            return torch.as_tensor(scale, device=src.device)
        scale = float(scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be a finite number greater than 0")
    return scale
