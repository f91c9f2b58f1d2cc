"""Files that are whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name, and replaces another of it, only once all of it is on disk.

    Raises:
        OSError: it cannot be written; nothing is left behind and an older file stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def check_new_folder(path: Path) -> None:
    """Raise, one sentence, unless a folder can be created there.

    Raises:
        FileExistsError: it exists. FileNotFoundError: the folder it goes into does not.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already; choose another name or move it away")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder; create it to write {path.name}")


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """A new folder of files that takes its name only once all of them are on disk.

    Raises:
        OSError: it exists, or cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def keep_as(source: Path, target: Path) -> None:
    """Give a file that is never written in place a second name, replacing what had it.

    A hard link, or a copy where the file system has none.

    Raises:
        OSError: it cannot be done; what had the name stays.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            with written_whole(target) as file, open(source, "rb") as original:
                shutil.copyfileobj(original, file)
        else:
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(target.parent)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in ``folder``."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make a file or a rename in a folder last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
