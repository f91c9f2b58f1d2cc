"""Image files to uint8 RGB, or one sentence that names the file."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np

from amdim_fast.files import read_whole
from amdim_fast.optional import require

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's other readers are seldom used, and one of them starts a program (Ghostscript for EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_16_BIT_STEP = 257  # 65535 / 255
_BYTES_PER_PIXEL = 16  # the most that a reader works with
_UNKNOWN_SIZE = 1 << 28  # bytes that opening a file may take


class BadImage(ValueError):  # noqa: N818 - the file is bad
    """A file that cannot be read as an image; the message names it and says why."""


def decode(path: str | os.PathLike[str]) -> Image:
    """The Pillow image, mode RGB, of a file of one of ``FORMATS``, whatever its name.

    Equals ``Image.open(path).convert("RGB")``, which the original's ``ImageFolder`` calls, except
    for 16-bit gray, which Pillow would clip or truncate and which is value / 257, rounded, here. So
    alpha is dropped, not blended; palettes are looked up; CMYK is converted without a profile; only
    the first frame counts; and 16-bit color keeps the high byte. EXIF rotation is ignored, as in
    the original and in the usual ImageNet training.

    Raises:
        BadImage: the file is empty, truncated, not an image, no regular file, of more than a GiB,
            or larger than twice ``PIL.Image.MAX_IMAGE_PIXELS``, Pillow's guard against
            decompression bombs.
        OSError: the file cannot be read at all. MemoryError: there is no memory for its pixels.
    """
    pillow = require("PIL.Image", "decoding images")
    try:
        content = read_whole(path)
    except ValueError as error:
        raise BadImage(str(error)) from None
    except MemoryError:
        raise _no_memory(path) from None
    if not content:
        raise BadImage(f"{path} is empty")
    needed = _UNKNOWN_SIZE
    try:
        with pillow.open(io.BytesIO(content), formats=FORMATS) as image:
            needed = image.width * image.height * _BYTES_PER_PIXEL
            return to_rgb(image)
    except pillow.DecompressionBombError:
        raise BadImage(
            f"{path} has more pixels than Pillow opens ({2 * pillow.MAX_IMAGE_PIXELS:,}); raise"
            " PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from None
    except pillow.UnidentifiedImageError:
        raise BadImage(
            f"{path} is not an image ({', '.join(FORMATS)}), or its start is damaged"
        ) from None
    # Pillow's readers may raise anything: OSError, SyntaxError, struct.error...
    except Exception as error:
        if isinstance(error, MemoryError) or not _fits(needed):
            raise _no_memory(path) from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"{path} is damaged or truncated ({reason})") from None


def _no_memory(path: str | os.PathLike[str]) -> MemoryError:
    return MemoryError(
        f"there is no memory to decode {path}; use fewer workers, or raise the limit (ulimit -v)"
    )


def _fits(size: int) -> bool:
    """Whether this many bytes can be had: some readers call a want of memory a damaged file."""
    try:
        return len(bytearray(size)) == size
    except MemoryError:
        return False


def to_rgb(image: Image) -> Image:
    """An open Pillow image in mode RGB, converted as ``decode`` says.

    Raises:
        ValueError: its gray values are not those of 16 bits.
    """
    pillow = require("PIL.Image", "converting images")
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} that are not within 16 bits")
        gray = (values.astype(np.uint32) + _16_BIT_STEP // 2) // _16_BIT_STEP
        return pillow.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def pixels_of(image: Image) -> np.ndarray:
    """uint8 [H, W, 3], writable, of an RGB image."""
    return np.array(image, dtype=np.uint8)
