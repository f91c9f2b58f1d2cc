"""Finding a device by name, and what it supports."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """The torch device of this name, if it can be used here.

    Raises:
        ValueError: torch does not know the device, or this machine does not have it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"device is {name!r}; it must be one of torch's, such as cpu or cuda"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch finds no CUDA device here; use cpu")
    return device


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones: on CUDA, AVX-512 BF16 and AMX."""
    if device.type != "cpu":
        return device.type == "cuda"
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
