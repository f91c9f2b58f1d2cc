"""Importing optional packages, and making matplotlib figures."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any


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


def new_figure(width: float, height: float, purpose: str) -> Any:
    """An empty matplotlib figure that needs no display; width and height in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; names the purpose.
    """
    figures = require("matplotlib.figure", purpose, "demo")
    return figures.Figure(figsize=(width, height), layout="constrained")


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
