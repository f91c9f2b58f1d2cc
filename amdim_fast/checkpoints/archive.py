"""The zip that ``torch.save`` writes: its checksums, which ``torch.load`` does not compare."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path

from amdim_fast.checkpoints.formats import CheckpointError

_BLOCK = 1 << 20
_FOLDER = 0x10  # of the attributes of an entry; torch reads no data of one that has it


def check_archive(path: Path) -> None:
    """Read every entry of a checkpoint's zip and compare its CRC-32.

    A file without checksums (``torch.serialization.set_crc32_options(False)``) has nothing to
    compare but its structure.

    Raises:
        CheckpointError: it is truncated, damaged or a zip of other files. OSError: it cannot be
            read.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path} is truncated or damaged; copy it again or use an earlier file"
            )
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            if not any(name.endswith("/data.pkl") for name in names):
                raise CheckpointError(f"{path} is a zip of other files; give a checkpoint file")
            if len(names) != len(entries):
                raise zipfile.BadZipFile("two entries have one name")
            for entry in entries:
                _check_entry(archive, entry, summed=any(other.CRC for other in entries))
    except (CheckpointError, MemoryError):
        raise
    # zipfile raises anything on damaged structures: BadZipFile, struct.error, RuntimeError...
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the start
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path} is damaged ({reason}); copy it again or use an earlier file"
        ) from None


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, *, summed: bool) -> None:
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        raise zipfile.BadZipFile(f"sizes of {entry.filename!r} differ")
    if entry.external_attr & _FOLDER and not entry.is_dir():
        raise zipfile.BadZipFile(f"{entry.filename!r} is marked as a folder")
    with archive.open(entry) as content:
        while summed and content.read(_BLOCK):
            pass
