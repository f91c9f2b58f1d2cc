"""Whether image files ask to be turned, which ``decode`` does not do."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

from amdim_fast.data.sources import Member, Source
from amdim_fast.optional import require

FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow turns TIFF files itself
LOOKED_AT = 64
_ORIENTATION = 0x0112  # of EXIF; 1 is upright


def said_orientation(source: Callable[[int], Source], files: int) -> str:
    """A sentence if some of ``source(0)`` to ``source(files - 1)`` have an EXIF orientation, or "".

    Reads the headers of at most 64 of them, evenly spaced.
    """
    count = min(files, LOOKED_AT)
    turned = sum(_is_turned(source(index * files // count)) for index in range(count))
    if not turned:
        return ""
    return (
        f"of {count} files looked at, {turned} have an EXIF orientation, which is ignored: turn"
        " their pixels first, with Pillow's ImageOps.exif_transpose, if they shall be upright"
    )


def _is_turned(source: Source) -> bool:
    pillow = require("PIL.Image", "decoding images")
    with contextlib.suppress(Exception):
        file = io.BytesIO(source.read()) if isinstance(source, Member) else source
        with pillow.open(file, formats=FORMATS) as image:
            return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    return False
