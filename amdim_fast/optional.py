"""Packages that only some commands need."""

from __future__ import annotations

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
