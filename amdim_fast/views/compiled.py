"""The compiled libraries, found beside the package and loaded once, and the choice of a backend."""

from __future__ import annotations

from pathlib import Path

import torch

# Ops that are written in Python are registered here.
LIBRARY = torch.library.Library("amdim_fast", "FRAGMENT")
FOLDER = Path(__file__).resolve().parents[1]
HOW_TO_BUILD = "pip install . (or make test, in a clone) builds it and needs a C++20 compiler"
BACKENDS = ("compiled", "reference")
_FOUND: dict[str, bool] = {}


def load_cpu() -> bool:
    """Load the schemas and the CPU ops; False if they are not built."""
    return _load("_cpu.so")


def load_cuda() -> bool:
    """Load the CUDA ops; False if they are not built or torch has no CUDA."""
    return load_cpu() and torch.version.cuda is not None and _load("_cuda.so")


def _load(name: str) -> bool:
    # torch.compile can trace a look-up here, but not functools.cache.
    if name not in _FOUND:
        path = FOLDER / name
        if path.exists():
            torch.ops.load_library(path)
        _FOUND[name] = path.exists()
    return _FOUND[name]


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
