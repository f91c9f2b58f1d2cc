"""Image files to uint8 RGB, or one sentence that names the file."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from amdim_fast.data.sources import Member, content_of
from amdim_fast.optional import require

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's other readers are seldom used, and one of them starts a program (Ghostscript for EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
ARRAY = b"\x93NUMPY"
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of so many channels
_16_BIT_STEP = 257  # 65535 / 255
_guard_lock = threading.Lock()
_BYTES_PER_PIXEL = 16  # the most that a reader works with
_UNKNOWN_SIZE = 1 << 28  # bytes that opening a file may take


class BadImage(ValueError):  # noqa: N818 - the file is bad
    """A file that cannot be read as an image; the message names it and says why."""


class OtherChannels(BadImage):
    """A file whose images have other channels than are asked for."""


class OtherPixelsError(ValueError):
    """An image is whole, but its values are not those of 8 or 16 bits."""


def decode(
    path: str | os.PathLike[str] | Member,
    *,
    max_pixels: int | None = None,
    least_side: int = 1,
    channels: int = 3,
) -> Image:
    """The Pillow image, mode RGB, of a file of one of ``FORMATS``, whatever its name.

    Equals ``Image.open(path).convert("RGB")``, which the original's ``ImageFolder`` calls, except
    for 16-bit gray, which Pillow would clip or truncate and which is value / 257, rounded, here. So
    alpha is dropped, not blended; palettes are looked up; CMYK is converted without a profile; only
    the first frame counts; and 16-bit color keeps the high byte. EXIF rotation is ignored, as in
    the original and in the usual ImageNet training, but in TIFF files, which Pillow turns itself.

    Args:
        path: the file, or an image inside a larger one.
        max_pixels: an image of more is bad; None is twice ``PIL.Image.MAX_IMAGE_PIXELS``, Pillow's
            guard against decompression bombs.
        least_side: an image with a shorter side is bad, pixels; views that are moved by up to
            n pixels need n + 1.
        channels: 1 and 4 give an image of mode L or RGBA instead, by ``to_mode``.

    Raises:
        BadImage: the file is empty, truncated, not an image, no regular file, of more than a GiB,
            of pixels that are not those of 8 or 16 bits, too large or too small.
        OSError: the file cannot be read at all. MemoryError: there is no memory for its pixels.
    """
    pillow = require("PIL.Image", "decoding images")
    try:
        content = content_of(path)
    except ValueError as error:
        raise BadImage(str(error)) from None
    except MemoryError:
        raise _no_memory(path) from None
    if not content:
        raise BadImage(f"{path} is empty")
    if content.startswith(ARRAY):
        raise OtherChannels(
            f"{path} is a NumPy array; such files are read where --channels is given and is not 3"
        )
    needed = _UNKNOWN_SIZE
    try:
        with _guarded(max_pixels), pillow.open(io.BytesIO(content), formats=FORMATS) as image:
            check_size(path, image.width, image.height, max_pixels, least_side)
            needed = image.width * image.height * _BYTES_PER_PIXEL
            return to_mode(image, channels)
    except BadImage:
        raise
    except OtherPixelsError as error:
        raise BadImage(f"{path} {error}") from None
    except pillow.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise BadImage(_too_large(path, pixels, 2 * pillow.MAX_IMAGE_PIXELS)) from None
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


@contextlib.contextmanager
def _guarded(max_pixels: int | None) -> Iterator[None]:
    """Inside, Pillow's guard is off if ``max_pixels`` takes its place."""
    if max_pixels is None:
        yield
        return
    pillow = require("PIL.Image", "decoding images")
    with _guard_lock:
        usual, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            pillow.MAX_IMAGE_PIXELS = usual


def _too_large(path: object, pixels: int, most: int) -> str:
    return (
        f"{path} has {pixels:,} pixels, more than {most:,}; allow them with --max-pixels {pixels}"
    )


def check_size(
    name: object, width: int, height: int, max_pixels: int | None, least_side: int
) -> None:
    """Raise BadImage if an image is too small, or larger than ``max_pixels``."""
    check_sides(name, width, height, least_side)
    if max_pixels is not None and width * height > max_pixels:
        raise BadImage(_too_large(name, width * height, max_pixels))


def check_sides(name: object, width: int, height: int, least_side: int) -> None:
    """Raise BadImage if a side of an image is shorter than ``least_side``, which views need."""
    if min(width, height) < least_side:
        raise BadImage(
            f"{name} is {width} x {height} pixels, but the policy moves images by up to"
            f" {least_side - 1} pixels: both sides must be {least_side} or more, or take another"
            " --policy"
        )


def _no_memory(path: object) -> MemoryError:
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
        ValueError: its values are not those of 8 or 16 bits.
    """
    pillow = require("PIL.Image", "converting images")
    if image.mode == "F":
        raise OtherPixelsError(
            "has floating-point pixels, of unknown range; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise OtherPixelsError(
                f"has pixels from {values.min()} to {values.max()}, beyond 16 bits; save it with 8"
                " or 16 bits"
            )
        gray = (values.astype(np.uint32) + _16_BIT_STEP // 2) // _16_BIT_STEP
        return pillow.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def to_mode(image: Image, channels: int) -> Image:
    """An open Pillow image in the mode of so many channels: 1 L, 3 RGB, 4 RGBA.

    L is Pillow's luma of what ``to_rgb`` gives. Images without transparency get an alpha of 255.

    Raises:
        ValueError: there is no such mode, or the image's values are not those of 8 or 16 bits.
    """
    if channels not in MODES:
        raise ValueError(
            f"is a Pillow image, and they have {', '.join(map(str, MODES))} channels, not"
            f" {channels}; give uint8 arrays [H, W, {channels}]"
        )
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if channels == 4 and has_alpha and not image.mode.startswith(("I", "F")):
        return image.convert("RGBA")
    return to_rgb(image).convert(MODES[channels])


def pixels_of(image: Image | np.ndarray) -> np.ndarray:
    """uint8 [H, W, C], writable, of an image in one of ``MODES`` or an array; a copy."""
    pixels = np.array(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
