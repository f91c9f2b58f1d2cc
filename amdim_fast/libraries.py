"""The compiled libraries, found beside the package and loaded once."""

from __future__ import annotations

from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
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
