"""Files and folders: complete or absent, read if they end, named in one line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LARGEST_READ = 1 << 30  # bytes
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
# What a file system says that does not sync folders.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
# Control characters, ends of lines, and what turns the direction of writing.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name, replacing an older file, once all of it is on disk.

    Raises:
        OSError: it cannot be written; names it, nothing is left behind and the older file stays.
    """
    temporary = _temporary(path)
    with _naming(path, temporary):
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def check_new_folder(path: Path) -> None:
    """Raise unless a folder can be created at ``path``.

    Raises:
        FileExistsError: the path exists. FileNotFoundError: its parent folder does not. OSError:
            the system refuses, for want of permission or space, or of a shorter name.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already; choose another name or move it away")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder; create it to write {path.name}")
    tried = _temporary(path)
    try:
        tried.mkdir()
        tried.rmdir()
    except OSError as error:
        raise type(error)(f"{path} cannot be created ({error.strerror}); choose another") from None


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """A new folder of files that takes its name once all of them are on disk.

    Raises:
        OSError: it exists, or cannot be written; names it, and nothing is left behind.
    """
    temporary = _temporary(path)
    with _naming(path, temporary):
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                _sync(file)
            _sync_folder(temporary)
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(path.parent)


@contextlib.contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of the system that name no file, or the temporary one, name ``path``."""
    try:
        yield
    except OSError as error:
        of = error.filename
        if error.strerror is None or (of is not None and not str(of).startswith(str(temporary))):
            raise
        named = type(error)(f"{path} cannot be written ({error.strerror})")
        named.errno = error.errno
        raise named from error


def keep_as(source: Path, target: Path) -> None:
    """Give a file a second name, replacing the file that had it.

    The second name is a hard link, or a copy where the file system has none: ``source`` must never
    be written in place.

    Raises:
        OSError: it cannot be done; the file that had the name stays.
    """
    temporary = _temporary(target)
    with _naming(target, temporary):
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
        _sync_folder(target.parent)


def read_whole(path: str | os.PathLike[str], most: int = LARGEST_READ) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be read. ValueError: it is larger, or a device or a pipe, which may never
            end. Both name it.
    """
    try:
        with open(path, "rb", opener=open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is a device or a pipe; it must be a file")
            if status.st_size > most:
                raise ValueError(f"{path} has {status.st_size:,} bytes; it may have {most:,}")
            return file.read()
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror})") from None


def open_at_once(path: str, flags: int) -> int:
    """Open for reading; a pipe that nobody writes to would be waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def printable(text: str) -> str:
    """A text, such as a sentence with a file's name, as one line that no terminal acts on."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files and folders that killed writers left in ``folder``."""
    for entry in folder.iterdir():
        if not is_temporary(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one that this module writes before it is whole."""
    return _TEMPORARY.fullmatch(name) is not None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _sync(path: Path) -> None:
    """Make a file survive a power cut; full disks may tell only now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Make a rename in a folder survive a power cut, where the system can."""
    try:
        _sync(path)
    except PermissionError:  # a folder that may be written to and not read
        pass
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
