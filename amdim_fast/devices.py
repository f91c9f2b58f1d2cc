"""Devices by name."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """A device that can be used here.

    Raises:
        ValueError: torch knows no such device, or there is none here.
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
