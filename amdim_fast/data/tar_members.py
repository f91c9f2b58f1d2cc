"""The members of a tar file, indexed by their headers and read at random."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amdim_fast.files import LARGEST_READ, open_at_once

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_BLOCK = 512
_LARGEST_HEADER = 1 << 16  # bytes of a long name, or of a table of attributes
_LONGEST_NAME = 4096  # bytes
_PADDING = 1 << 20  # bytes behind the end that are looked at


@dataclass(frozen=True, slots=True)
class TarMember:
    """Part of a tar file that has not changed since it was indexed.

    Attributes:
        tar: the tar file.
        name: of the member.
        offset: of its content, bytes.
        size: of its content, bytes.
        tar_stamp: size of the tar file in bytes, and when it was changed, in ns.
    """

    tar: Path
    name: str
    offset: int
    size: int
    tar_stamp: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.tar}: {self.name}"

    def stamp(self) -> tuple[int, int]:
        """See ``Member.stamp``."""
        return self.size, self.tar_stamp[1]

    def read(self) -> bytes:
        """See ``Member.read``."""
        if self.size > LARGEST_READ:
            raise ValueError(f"{self} has {self.size:,} bytes; it may have {LARGEST_READ:,}")
        try:
            with open(self.tar, "rb", buffering=0, opener=open_at_once) as file:
                status = os.fstat(file.fileno())
                content = os.pread(file.fileno(), self.size, self.offset)
        except OSError as error:
            raise type(error)(f"{self} cannot be read ({error.strerror})") from None
        if (status.st_size, status.st_mtime_ns) != self.tar_stamp:
            raise OSError(f"{self} cannot be read: the tar file has changed since it was indexed")
        return content


@dataclass(frozen=True, slots=True)
class NoFile:
    """A member of a tar file that is neither a regular file nor a folder: a link, a device."""

    tar: Path
    name: str
    link: str

    def __str__(self) -> str:
        return f"{self.tar}: {self.name}"


class _Headers(io.FileIO):
    """A tar file of which only headers are read, whatever sizes they say."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size) or b""


def members_of(tar: Path) -> Iterator[TarMember | NoFile]:
    """What is in a tar file, in its order, without folders.

    Hard links to earlier regular files are such files themselves; other links lead nowhere. Reads
    headers alone. Names are text of UTF-8; other bytes of them are kept.

    Raises:
        ValueError: the file is compressed, damaged, truncated or not a tar file, members follow
            its end, or one is sparse. OSError: it cannot be read. Both name it.
    """
    try:
        with _Headers(tar, opener=open_at_once) as file:
            _check_kind(tar, file)
            yield from _members(tar, file)
    except OSError as error:
        raise type(error)(f"{tar} cannot be read ({error.strerror})") from None


def _check_kind(tar: Path, file: _Headers) -> None:
    start = os.pread(file.fileno(), _BLOCK, 0)
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"{tar} is compressed ({kind}), so that images could not be read at random; unpack"
                " it to a plain .tar"
            )


def _members(tar: Path, file: _Headers) -> Iterator[TarMember | NoFile]:
    status = os.fstat(file.fileno())
    stamp = status.st_size, status.st_mtime_ns
    end = 0
    files: dict[str, TarMember] = {}
    try:
        opened: Any = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        while (member := opened.next()) is not None:
            opened.members.clear()  # it keeps all
            if opened.offset <= end or member.size < 0:
                raise tarfile.ReadError("a negative size")
            end = opened.offset
            if member.isreg() and member.offset_data + member.size > status.st_size:
                raise tarfile.ReadError("unexpected end of data")
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is sparse; it must not be")
            if len(member.name) > _LONGEST_NAME:
                raise tarfile.ReadError(f"a name of {len(member.name):,} bytes")
            if member.isreg():
                found = TarMember(tar, member.name, member.offset_data, member.size, stamp)
            elif member.islnk() and member.linkname in files:
                found = replace(files[member.linkname], name=member.name)
            else:
                if not member.isdir():
                    yield NoFile(tar, member.name, member.linkname)
                continue
            files[member.name] = found
            yield found
        end = opened.offset
    # tarfile's readers may raise anything: ValueError, struct.error, RecursionError...
    except (tarfile.TarError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{tar} is no tar file, or damaged or truncated ({reason})") from None
    _check_end(tar, file, end)


def _check_end(tar: Path, file: _Headers, end: int) -> None:
    """A damaged header ends tarfile's reading without a word."""
    rest = os.pread(file.fileno(), _PADDING, end)
    if rest[:_BLOCK].strip(b"\0"):
        raise ValueError(f"{tar} is damaged or truncated at byte {end:,}")
    if rest.strip(b"\0"):
        raise ValueError(
            f"{tar} has more behind its end, at byte {end:,}; if tar files were joined, join them"
            " with tar --concatenate"
        )
