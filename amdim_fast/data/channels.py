"""Images of channels other than three: from files, and gray ones from color."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from amdim_fast.data.decoding import MODES, BadImage, OtherChannels, check_size, decode, pixels_of
from amdim_fast.data.folders import ARRAYS
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.data.sources import Member, Source, content_of
from amdim_fast.optional import require

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_CHANNELS = 1024
_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LUMA = (19595, 38470, 7471)  # of 65536: ITU-R 601, as Pillow has it
_IMAGES_AT_ONCE = 256


def decoder_of(channels: int, **options: Any) -> Callable[[Source], Image | np.ndarray]:
    """``decode`` for 3 channels, ``decode_channels`` for others, with these options; picklable."""
    if channels == 3:
        return partial(decode, **options)
    return partial(decode_channels, channels=channels, **options)


def decode_channels(
    path: str | os.PathLike[str] | Member,
    *,
    channels: int,
    max_pixels: int | None = None,
    least_side: int = 1,
) -> np.ndarray:
    """An image of any number of channels: of a NumPy array, or as Pillow gives it.

    A file whose name ends in ``.npy`` holds a uint8 array [H, W, C] or, of one channel, [H, W].
    Others are read by ``decode``, as gray for 1 channel and as RGBA for 4.

    Args:
        path: the file, or a part of one.
        channels: C.
        max_pixels: as in ``decode``.
        least_side: as in ``decode``.

    Returns:
        uint8 [H, W, C].

    Raises:
        OtherChannels: the file has another number of channels, or the array another type or shape.
        BadImage: as in ``decode``, or the array is damaged.
        OSError: the file cannot be read at all.
    """
    if str(path).lower().endswith(ARRAYS):
        pixels = _array(path, channels)
        check_size(path, pixels.shape[1], pixels.shape[0], max_pixels, least_side)
        return pixels
    if channels not in MODES:
        raise OtherChannels(
            f"{path} is no {ARRAYS} file, and others have 1, 3 or 4 channels, not {channels}; save"
            f" uint8 arrays [H, W, {channels}] as {ARRAYS} files"
        )
    options: dict[str, Any] = {"max_pixels": max_pixels, "least_side": least_side}
    return pixels_of(decode(path, channels=channels, **options))


def _array(path: str | os.PathLike[str] | Member, channels: int) -> np.ndarray:
    """Never unpickles, and takes no more memory than the file's size for what its header claims."""
    try:
        content = content_of(path)
    except ValueError as error:
        raise BadImage(str(error)) from None
    file = io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, is_fortran, dtype = _READ_HEADER[np.lib.format.read_magic(file)](file)
    except Exception:  # NumPy parses Python: SyntaxError, TokenError, IndexError...
        raise BadImage(f"{path} is not a NumPy array, or its start is damaged") from None
    found = f"{dtype} [{', '.join(map(str, shape))}]"
    if channels == 1 and len(shape) == 2:
        shape = (*shape, 1)
    if dtype != np.uint8 or len(shape) != 3 or shape[-1] != channels or min(shape) < 1:
        raise OtherChannels(f"{path} is {found}; it must be uint8 [H, W, {channels}]")
    pixels = np.frombuffer(content, np.uint8, offset=file.tell())
    if len(pixels) != shape[0] * shape[1] * shape[2]:
        raise BadImage(f"{path} is damaged or truncated: {len(pixels):,} bytes for {found}")
    return np.array(pixels.reshape(shape, order="F" if is_fortran else "C"), order="C")


def as_gray(images: Any) -> Any:
    """Color images in memory, by Pillow's luma; None remains None."""
    if images is None:
        return None
    gray = [
        (part.int() * torch.tensor(_LUMA, dtype=torch.int32)).sum(-1, dtype=torch.int32) + 32768
        for part in images.images.split(_IMAGES_AT_ONCE)
    ]
    return TensorImages(torch.cat([(part >> 16).byte() for part in gray])[..., None], images.labels)


def resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, C] with each channel as a gray image of Pillow's, by antialiased bicubic."""
    pillow = require("PIL.Image", "resizing images")
    method = pillow.Resampling.BICUBIC
    if pixels.shape[-1] == 3:  # the same, at once
        return np.array(pillow.fromarray(pixels).resize((width, height), method))
    planes = [pillow.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, -1, 0)]
    return np.stack([np.asarray(plane.resize((width, height), method)) for plane in planes], -1)
