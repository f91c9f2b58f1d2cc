"""Phrases about what is left out of a data set, fit to print."""

from __future__ import annotations

from collections.abc import Sequence

from amdim_fast.files import printable

NAMED = 3


def counted(what: str, names: Sequence[str]) -> str:
    """A phrase, fit to print: how many of what, and the first names."""
    return printable(f"{len(names):,} {what} ({listed(names)})")


def listed(names: Sequence[str]) -> str:
    """The first names."""
    return ", ".join([*names[:NAMED], *["..."] * (len(names) > NAMED)])
