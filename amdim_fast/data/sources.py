"""Where the bytes of an image lie: in a file of its own, or inside a larger one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, runtime_checkable

from amdim_fast.files import read_whole


@runtime_checkable
class Member(Protocol):
    """An image inside a larger file; as text, its place in messages."""

    def read(self) -> bytes:
        """Its content.

        Raises:
            ValueError: there is none, or too much. OSError: it cannot be read. Both name it.
        """

    def stamp(self) -> tuple[int, int]:
        """Its size in bytes, or 0, and when what holds it was changed, in ns."""


Source = Path | Member


class Archive(Protocol):
    """Images inside larger files, by name; picklable, for worker processes."""

    def member(self, name: str) -> Member:
        """The image of that name."""

    def place(self, name: str) -> str:
        """The member as text, found without looking it up."""


def source_of(root: Path, name: str, archive: Archive | None = None) -> Source:
    """The image of a name: a file below ``root``, unless there is an archive."""
    return root / name if archive is None else archive.member(name)


def content_of(source: str | os.PathLike[str] | Member) -> bytes:
    """The bytes of an image; errors are ``Member.read``'s."""
    return source.read() if isinstance(source, Member) else read_whole(source)


def stamp_of(source: Source) -> tuple[int, int]:
    """Size in bytes and time of change in ns, by which altered sources are told."""
    if isinstance(source, Member):
        return source.stamp()
    status = os.stat(source)
    return status.st_size, status.st_mtime_ns
