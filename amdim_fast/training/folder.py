"""The folder of a run: locked while a process trains in it, gone again if nothing was saved."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from amdim_fast.files import is_temporary
from amdim_fast.training.checkpoints import LAST
from amdim_fast.training.log import CONFIG, EVENTS, LOG

LOCK = ".lock"


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create and lock the folder of a new run; it is removed if no checkpoint was written.

    A folder that a run left before it wrote one is emptied and used.

    Raises:
        FileExistsError: the folder exists; it is left alone. OSError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not _never_began(folder):
            go_on = f", or go on with --resume {folder}" if (folder / LAST).exists() else ""
            raise FileExistsError(
                f"run folder {folder} exists already; choose another --name or move it away{go_on}"
            ) from None
    except OSError as error:
        raise type(error)(
            f"run folder {folder} cannot be created ({error.strerror}); choose another --runs-dir"
        ) from None
    with locked(folder):
        _empty(folder)
        try:
            yield
        finally:
            if not (folder / LAST).exists():
                shutil.rmtree(folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run until the end of the context or of this process, however it ends.

    Raises:
        BlockingIOError: another process trains there; names its id and host. OSError: the folder
            cannot be written to.
    """
    path = folder / LOCK
    descriptor = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise type(error)(f"{path.parent} cannot be written to ({error.strerror})") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
            os.close(descriptor)
            raise BlockingIOError(
                f"the run {path.parent} is being trained by {holder or 'another process'}; wait for"
                " it, or stop it, and resume then"
            ) from None
        except OSError as error:
            print(
                f"amdim-fast: {path.parent} cannot be locked ({error.strerror}); let no second"
                " process train there",
                file=sys.stderr,
            )
        if _is_at(descriptor, path):
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
            return descriptor
        os.close(descriptor)  # its last holder has just removed it


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _never_began(folder: Path) -> bool:
    """Whether what is there is what a run writes before its first checkpoint, and all of it."""
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    others = {name for name in names if not is_temporary(name)}
    return bool(others) and others <= {CONFIG, LOG, EVENTS, LOCK}


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
