"""Segmentation of image files: posteriors and overlays of each, written to a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from amdim_fast.data.decoding import decode, pixels_of
from amdim_fast.devices import execution_line, find_device
from amdim_fast.model.frozen import frozen_facts
from amdim_fast.model.pretrained import read_pretrained
from amdim_fast.model.replay import eval_mode
from amdim_fast.segmentation.posterior import (
    SCALES,
    enlarge,
    overlay,
    save_posterior,
    segment,
    segment_picture,
)
from amdim_fast.views.preprocessing import Preprocessing
from amdim_fast.views.sheets import write_png

DENSE = "dense"


def segment_files(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out_dir: str | Path,
    *,
    bank: Sequence[str | Path] = (),
    policy: str | None = None,
    device: str | None = None,
    stride: int | None = None,
    opacity: float = 0.5,
    max_pixels: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> list[Path]:
    """Segment pictures by the components of a checkpoint, and write the results.

    For NAME.jpg it writes ``NAME-r7.png`` and ``NAME-r5.png``, the central square at its own
    resolution with the color of the likeliest component blended over it; ``NAME-dense.png``, if the
    picture is larger than the encoder's input, the same for the whole picture from a sliding
    encoder; and ``NAME.npz`` with the raw posteriors ``r7`` [K, 7, 7], ``r5`` [K, 5, 5] and
    ``dense`` [K, H, W], float32.

    Args:
        checkpoint: file of an AMDIM with components.
        images: image files.
        out_dir: folder for the results, created if missing.
        bank: files whose locations are the negatives; if empty, the other ``images``.
        policy: as in ``load_pretrained``.
        device: where the encoder runs; by default cuda where torch finds a GPU, else cpu.
        stride: pixels between windows of the dense grid; None is a quarter of the encoder's size.
        opacity: opacity of the colors, 0 to 1.
        max_pixels: the most that an image may have; None is Pillow's own bound.
        overwrite: whether existing files may be replaced.
        progress: whether to say first what runs where.

    Returns:
        The files written.

    Raises:
        ValueError: the checkpoint has no components, two images have one name, or one image has no
            bank. FileExistsError: a file exists. BadImage, OSError: an image cannot be read.
    """
    where = find_device(device)
    names = [Path(path).stem for path in images]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"images has two files named {name!r}; segment them into different folders"
            )
    if not bank and len(images) < 2:
        raise ValueError("one image has no negatives; give more images, or files as a bank")
    model, preprocessing, _ = read_pretrained(checkpoint, policy=policy)
    if model.mixture is None:
        raise ValueError(f"{checkpoint} has no components; pre-train with --mixture K")
    if model.encoder.in_channels != 3:
        raise ValueError(
            f"{checkpoint} takes images of C = {model.encoder.in_channels} channels; only color"
            " images can be segmented from files: call segment with your own"
        )
    square = replace(preprocessing, resize=preprocessing.size)
    folder = Path(out_dir)
    expected = [
        folder / f"{name}{part}"
        for name in names
        for part in (*(f"-{scale}.png" for scale in (*SCALES, DENSE)), ".npz")
    ]
    for path in expected:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; choose another folder, or --overwrite")
    pictures, others = (
        [torch.from_numpy(pixels_of(decode(path, max_pixels=max_pixels))) for path in paths]
        for paths in (images, bank)
    )

    model = model.to(where)
    if progress:
        print(execution_line(frozen_facts(model.encoder)), file=sys.stderr)
    views = square(pictures).to(where)
    banks: dict[str, Tensor | None] = dict.fromkeys(SCALES)
    if others:
        with eval_mode(model.encoder):
            maps = model.encoder(square(others).to(where))
        banks = {scale: getattr(maps, scale) for scale in SCALES}
    posteriors = {scale: segment(model, views, scale=scale, bank=banks[scale]) for scale in SCALES}

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        arrays = {scale: maps[index] for scale, maps in posteriors.items()}
        for scale, posterior in posteriors.items():
            core = _central_square(picture)
            pixels = enlarge(posterior[index : index + 1], square.size)
            shape = (core.shape[0], core.shape[1])
            pixels = F.interpolate(pixels, shape, mode="bilinear", align_corners=False)[0].cpu()
            written.append(folder / f"{name}-{scale}.png")
            write_png(written[-1], overlay(core, pixels, opacity=opacity))
        if min(picture.shape[:2]) >= square.size and max(picture.shape[:2]) > square.size:
            dense = segment_picture(
                model, _normalized(picture, square, where), stride=stride, bank=banks["r7"]
            ).cpu()
            arrays[DENSE] = dense
            written.append(folder / f"{name}-{DENSE}.png")
            write_png(written[-1], overlay(picture, dense, opacity=opacity))
        written.append(folder / f"{name}.npz")
        save_posterior(written[-1], **arrays)
    return written


def _central_square(picture: Tensor) -> Tensor:
    side = min(picture.shape[:2])
    top, left = (round((length - side) / 2) for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def _normalized(picture: Tensor, square: Preprocessing, device: torch.device) -> Tensor:
    """[3, H, W] of a picture at its own size."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (square.mean, square.std))
    return ((picture.permute(2, 0, 1) / 255 - mean) / std).to(device)
