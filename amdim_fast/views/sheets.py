"""Pictures for people: images beside their views, test images beside their nearest neighbors."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from amdim_fast.data.decoding import decode, pixels_of
from amdim_fast.files import written_whole
from amdim_fast.optional import require
from amdim_fast.views.augment import augment
from amdim_fast.views.params import ViewPolicy
from amdim_fast.views.sampling import sample_view_params

GAP = 2
BACKGROUND = 255


def view_tiles(
    images: Sequence[Tensor], policy: ViewPolicy, *, views: int = 2, seed: int = 0
) -> Tensor:
    """The views of some images as pixels.

    Equals ``augment``, before normalization, with parameters drawn from a generator of this seed.

    Args:
        images: N tensors, uint8 [H, W, 3].
        policy: what to draw from.
        views: V.
        seed: of the generator.

    Returns:
        uint8 [N, V, size, size, 3].
    """
    params = sample_view_params(
        policy,
        [image.shape[:2] for image in images],
        views=views,
        generator=torch.Generator().manual_seed(seed),
    )
    made = augment(
        list(images), params, size=policy.size, mean=(0.0,) * 3, std=(1.0,) * 3, channels_last=True
    )
    return made.mul(255).round().byte().permute(1, 0, 3, 4, 2)


def fitted(image: Tensor, size: int) -> Tensor:
    """An image uint8 [H, W, 3], scaled to fit into [size, size, 3] and centered on white."""
    pillow, operations = (
        require(module, "drawing images") for module in ("PIL.Image", "PIL.ImageOps")
    )
    picture = pillow.fromarray(image.numpy())
    white = (BACKGROUND,) * 3
    method = pillow.Resampling.BICUBIC
    if round(min(picture.size) / max(picture.size) * size) == 0:  # Pillow would leave no pixel
        thin = (size, 1) if picture.width > picture.height else (1, size)
        picture = picture.resize(thin, method)
    return torch.from_numpy(
        pixels_of(operations.pad(picture, (size, size), method=method, color=white))
    )


def shown(images: Tensor) -> Tensor:
    """uint8 [..., C] as colors, uint8 [..., 3]: the first three channels, or the first as gray."""
    if images.shape[-1] < 3:
        return images[..., :1].expand(*images.shape[:-1], 3)
    return images[..., :3]


def sheet(tiles: Tensor, edges: Tensor | None = None) -> Tensor:
    """Lay tiles out in rows, with ``GAP`` pixels around each.

    Args:
        tiles: uint8 [R, C, S, S, 3].
        edges: uint8 [R, C, 3], color of the gap around each tile; white if None.

    Returns:
        uint8 [R (S + 2 GAP), C (S + 2 GAP), 3].
    """
    rows, columns, size = tiles.shape[:3]
    step = size + 2 * GAP
    cells = torch.full((rows, columns, step, step, 3), BACKGROUND, dtype=torch.uint8)
    if edges is not None:
        cells[:] = edges[:, :, None, None]
    cells[:, :, GAP:-GAP, GAP:-GAP] = tiles
    return cells.transpose(1, 2).reshape(rows * step, columns * step, 3)


def view_sheet(
    paths: Sequence[str | os.PathLike[str]],
    policy: ViewPolicy,
    *,
    views: int = 2,
    seed: int = 0,
    max_pixels: int | None = None,
) -> Tensor:
    """One row for each image file: the image, fitted into a tile, and its views.

    Raises:
        BadImage, OSError: a file cannot be read, or its image is too small for the policy or has
            more than ``max_pixels``.
    """
    decoded = map(partial(decode, max_pixels=max_pixels, least_side=policy.least_side), paths)
    images = [torch.from_numpy(pixels_of(image)) for image in decoded]
    originals = torch.stack([fitted(image, policy.size) for image in images])
    tiles = view_tiles(images, policy, views=views, seed=seed)
    return sheet(torch.cat([originals[:, None], tiles], 1))


def write_png(path: Path, pixels: Tensor) -> None:
    """Write uint8 [H, W, 3], whole or not at all."""
    pillow = require("PIL.Image", "writing images")
    encoded = io.BytesIO()
    pillow.fromarray(pixels.numpy()).save(encoded, "PNG")
    with written_whole(path) as file:
        file.write(encoded.getvalue())


def check_new(path: Path, *, overwrite: bool = False) -> None:
    """Raise unless a file can be written there.

    Raises:
        FileExistsError: it exists and may not be overwritten. FileNotFoundError: its folder does
            not exist. IsADirectoryError: it is a folder itself.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; it must be the name of a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name or allow --overwrite")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder; create it to write {path.name}")
