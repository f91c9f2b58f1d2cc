"""What an installation may lack: optional packages, matplotlib's figures, compiled libraries."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent
_FOUND: dict[str, bool] = {}


def require(module: str, purpose: str, extra: str = "data") -> Any:
    """Import ``module``, or say which extra of this package installs it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{purpose} needs {package}, which is not installed; pip install 'amdim-fast[{extra}]'"
        ) from error


def new_figure(
    width: float, height: float, purpose: str, layout: str | None = "constrained"
) -> Any:
    """An empty matplotlib figure that needs no display; width and height in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; names the purpose.
    """
    figures = require("matplotlib.figure", purpose, "demo")
    return figures.Figure(figsize=(width, height), layout=layout)


def png_of(figure: Any) -> bytes:
    """A matplotlib figure as PNG, 110 dots per inch."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=110)
    return encoded.getvalue()


@contextlib.contextmanager
def may_fail(picture: Path, rest: str) -> Iterator[None]:
    """A context that draws a picture, and says on stderr if it fails, and that ``rest`` is not."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"amdim-fast: {picture} could not be drawn ({reason}); {rest}", file=sys.stderr)


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
