"""Whether the compiled library of views can run, and the choice of a backend."""

from __future__ import annotations

import torch

from amdim_fast.optional import load_cpu, load_cuda

# Ops that are written in Python are registered here.
LIBRARY = torch.library.Library("amdim_fast", "FRAGMENT")
HOW_TO_BUILD = "pip install . (or make test, in a clone) builds it and needs a C++20 compiler"
BACKENDS = ("compiled", "reference")


def require(device_type: str) -> None:
    """Raise a RuntimeError unless the ops of this device are built."""
    if not load_cpu():
        raise RuntimeError(
            f"the compiled library of amdim_fast is not built: {HOW_TO_BUILD};"
            ' backend="reference" runs plain PyTorch instead'
        )
    if device_type == "cuda" and not load_cuda():
        raise RuntimeError(
            f"the CUDA library of amdim_fast is not built: {HOW_TO_BUILD} and nvcc on the PATH;"
            ' backend="reference" runs plain PyTorch instead'
        )
    if device_type not in ("cpu", "cuda"):
        raise RuntimeError(
            f"the compiled library of amdim_fast runs on cpu and cuda, not {device_type};"
            ' backend="reference" runs plain PyTorch instead'
        )


def check_backend(backend: str) -> None:
    """Raise a ValueError unless there is a backend of this name."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")


def views_device(device: torch.device) -> torch.device:
    """Where views for a model on ``device`` are made: there or, if not built, on the CPU."""
    return device if device.type != "cuda" or load_cuda() else torch.device("cpu")
