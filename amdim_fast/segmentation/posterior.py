"""The posterior over components at each location and pixel, and its overlay on the picture."""

from __future__ import annotations

import colorsys
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amdim_fast.files import written_whole
from amdim_fast.model.amdim import AMDIM
from amdim_fast.model.replay import eval_mode
from amdim_fast.nce.clip import clipped
from amdim_fast.nce.feature_maps import flatten_local
from amdim_fast.nce.functional import nce_log_prob
from amdim_fast.nce.mixture import MixtureNCELoss, responsibilities

SCALES = ("r7", "r5")
# Scores against a stored bank are computed for this many bank images at a time.
BANK_IMAGES = 64


def posterior_maps(
    components: Tensor,
    feature_map: Tensor,
    *,
    tau: float = 5.0,
    clip: float | None = 20.0,
    bank: Tensor | None = None,
) -> Tensor:
    """Posterior over components at each location of each image's own map.

    ``softmax_j(tau * s[j,b,l])``, where s is the log-probability of ``nce_log_prob``: the location
    of the own image against the locations of the batch's other images, or of a bank.

    Args:
        components: [K, B, D], such as ``MixtureHead(r1)``.
        feature_map: [B, D, h, w] of the same images, floating point as components.
        tau: inverse temperature, as in the training loss.
        clip: bound on |score|, as in the training loss, nats, or None.
        bank: [M, D, h', w'] maps of M other images, which are then the negatives.

    Returns:
        [B, K, h, w] float32 (float64 for float64 features); sums to 1 over K. No gradient.

    Raises:
        ValueError: shapes disagree, or there is one image and no bank, so no negatives.
    """
    if components.dim() != 3:
        raise ValueError(f"components has shape {list(components.shape)}; it must be [K, B, D]")
    trg = flatten_local("feature_map", feature_map)
    if bank is None and trg.shape[0] == 1:
        raise ValueError("feature_map has 1 image, so no negatives; give more images or a bank")
    with torch.no_grad():
        found = nce_log_prob(components, trg, clip=clip)
        log_prob = found.log_prob
        if bank is not None:
            neg = _log_sum(components, flatten_local("bank", bank), clip)
            log_prob = found.score - torch.logaddexp(found.score, neg)
        posterior = responsibilities(log_prob, tau).transpose(0, 1)
    return posterior.unflatten(2, feature_map.shape[2:])


def _log_sum(components: Tensor, bank: Tensor, clip: float | None) -> Tensor:
    """Log of the summed exp of the scores against bank [M, L, D]: [K, B, 1]."""
    if bank.shape[2] != components.shape[2]:
        raise ValueError(f"bank has width {bank.shape[2]}; it must be {components.shape[2]}")
    wide = torch.promote_types(components.dtype, torch.float32)
    src = components.to(wide) / components.shape[2] ** 0.5
    total = src.new_full((*src.shape[:2], 1), -torch.inf)
    for part in bank.to(wide).split(BANK_IMAGES):
        score = clipped(src @ part.flatten(0, 1).T, clip)
        total = torch.logaddexp(total, score.logsumexp(-1, keepdim=True))
    return total


def enlarge(posterior: Tensor, size: int) -> Tensor:
    """[B, K, m, m] maps of an encoder of ``size`` px, enlarged to [B, K, size, size].

    Bilinear between the centers of the receptive fields, which are size / 8 px apart and symmetric
    in the picture; constant outside them.
    """
    side = posterior.shape[-1]
    pixel = torch.arange(size, dtype=posterior.dtype, device=posterior.device)
    place = (pixel - (size - 1) / 2) / (size // 8) + (side - 1) / 2
    unit = 2 * place / (side - 1) - 1
    grid = torch.stack(torch.meshgrid(unit, unit, indexing="xy"), dim=-1)
    return F.grid_sample(
        posterior,
        grid.expand(posterior.shape[0], -1, -1, -1),
        padding_mode="border",
        align_corners=True,
    )


def segment(
    model: AMDIM, images: Tensor, *, scale: str = "r7", bank: Tensor | None = None
) -> Tensor:
    """Posterior maps of images of the encoder's size, in evaluation mode.

    Args:
        model: an AMDIM with components.
        images: [B, C, size, size], normalized as in training.
        scale: "r7" for 7x7 maps, "r5" for 5x5.
        bank: [M, D, h, w] maps of other images at that scale; None is the rest of the batch.

    Returns:
        [B, K, m, m]; see ``posterior_maps``.

    Raises:
        ValueError: the model has no components, or scale is unknown.
    """
    if model.mixture is None or not isinstance(model.g2l_loss, MixtureNCELoss):
        raise ValueError("the model has no components; train one with components=K")
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; it must be one of {', '.join(SCALES)}")
    with eval_mode(model):
        maps = model.encoder(images)
        components = model.mixture(maps.r1)
    tau, clip = model.g2l_loss.tau, model.g2l_loss.tclip
    return posterior_maps(components, getattr(maps, scale), tau=tau, clip=clip, bank=bank)


def segment_picture(
    model: AMDIM,
    picture: Tensor,
    *,
    scale: str = "r7",
    stride: int | None = None,
    bank: Tensor | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Posterior [K, H, W] at each pixel of a picture of the encoder's size or larger.

    The encoder slides over the picture; windows that share a pixel are averaged.

    Args:
        model: an AMDIM with components.
        picture: [C, H, W], normalized as in training.
        scale: "r7" or "r5".
        stride: pixels between windows; None is a quarter of the encoder's size.
        bank: maps of other pictures at that scale, the negatives; None is the other windows of this
            picture, overlapping ones included.
        batch_size: windows encoded at a time; without a bank, all are encoded at once.

    Raises:
        ValueError: the picture is smaller than the encoder's size, or has one window and no bank.
    """
    size = model.encoder.size
    if picture.dim() != 3 or min(picture.shape[1:]) < size:
        raise ValueError(
            f"picture has shape {list(picture.shape)}; it must be [C, H, W] of {size} px or more"
        )
    stride = max(1, size // 4) if stride is None else stride
    if stride < 1 or stride > size:
        raise ValueError(f"stride is {stride}; it must be from 1 to {size} pixels")
    places = [
        (top, left)
        for top in _starts(picture.shape[1], size, stride)
        for left in _starts(picture.shape[2], size, stride)
    ]
    if bank is None and len(places) == 1:
        raise ValueError("the picture is one window, so no negatives; give a bank")
    count = len(places) if bank is None else batch_size
    total: Tensor | None = None
    hits = picture.new_zeros(picture.shape[1:])
    for start in range(0, len(places), count):
        batch = places[start : start + count]
        windows = torch.stack([picture[:, y : y + size, x : x + size] for y, x in batch])
        dense = enlarge(segment(model, windows, scale=scale, bank=bank), size)
        if total is None:
            total = dense.new_zeros(dense.shape[1], *picture.shape[1:])
        for (y, x), window in zip(batch, dense, strict=True):
            total[:, y : y + size, x : x + size] += window
            hits[y : y + size, x : x + size] += 1
    assert total is not None
    return total / hits


def _starts(length: int, size: int, stride: int) -> list[int]:
    """Starts of windows that cover the whole length."""
    return sorted({*range(0, length - size + 1, stride), length - size})


def colors(components: int) -> Tensor:
    """[K, 3] uint8, hues evenly spaced."""
    found = [colorsys.hsv_to_rgb(k / components, 0.9, 1.0) for k in range(components)]
    return (255 * torch.tensor(found)).round().to(torch.uint8)


def overlay(picture: Tensor, posterior: Tensor, *, opacity: float = 0.5) -> Tensor:
    """The picture with the color of the likeliest component blended over each pixel.

    Args:
        picture: uint8 [H, W, 3].
        posterior: [K, H, W].
        opacity: opacity of the colors; 0 shows only the picture, 1 hides it.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: sizes disagree, or opacity is not in 0..1.
    """
    if picture.shape != (*posterior.shape[1:], 3) or picture.dtype != torch.uint8:
        raise ValueError(
            f"picture is {picture.dtype} {list(picture.shape)}; it must be uint8"
            f" {[*posterior.shape[1:], 3]}, as the posterior"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; it must be from 0 to 1")
    shade = colors(posterior.shape[0]).to(posterior.device)[posterior.argmax(0)]
    blended = (1 - opacity) * picture.float() + opacity * shade.float()
    return blended.round().to(torch.uint8)


def save_posterior(path: str | os.PathLike[str], **arrays: Tensor) -> None:
    """Write tensors, such as ``r7=``, ``r5=``, ``dense=``, as a complete compressed .npz."""
    named: dict[str, Any] = {name: value.cpu().numpy() for name, value in arrays.items()}
    with written_whole(Path(path)) as file:
        np.savez_compressed(file, **named)
