"""Packages that only some commands need, and what several of them draw with."""

from __future__ import annotations

import io
from importlib import import_module
from typing import Any


def require(module: str, purpose: str, extra: str = "data") -> Any:
    """Import ``module`` of an extra of this package, or say in one sentence how to get it.

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
    """An empty figure of matplotlib, inches wide and high, which needs no display.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; says what for.
    """
    figures = require("matplotlib.figure", purpose, "demo")
    return figures.Figure(figsize=(width, height), layout="constrained")


def png_of(figure: Any) -> bytes:
    """PNG of a figure of matplotlib, 110 dots an inch."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=110)
    return encoded.getvalue()
