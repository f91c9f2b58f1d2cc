"""Whether image files ask to be turned, which ``decode`` does not do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from amdim_fast.optional import require

FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow turns TIFF files itself
LOOKED_AT = 64
_ORIENTATION = 0x0112  # of EXIF; 1 is upright


def said_orientation(path: Callable[[int], Path], files: int) -> str:
    """A sentence if some of ``path(0)`` to ``path(files - 1)`` have an EXIF orientation, or "".

    Reads the headers of at most 64 of them, evenly spaced.
    """
    count = min(files, LOOKED_AT)
    turned = sum(_is_turned(path(index * files // count)) for index in range(count))
    if not turned:
        return ""
    return (
        f"of {count} files looked at, {turned} have an EXIF orientation, which is ignored: turn"
        " their pixels first, with Pillow's ImageOps.exif_transpose, if they shall be upright"
    )


def _is_turned(path: Path) -> bool:
    pillow = require("PIL.Image", "decoding images")
    with contextlib.suppress(Exception), pillow.open(path, formats=FORMATS) as image:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    return False
