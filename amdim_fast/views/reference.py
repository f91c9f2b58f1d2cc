"""Views as Pillow < 13 and torchvision make them on uint8, bit for bit, in plain PyTorch.

Images are planar here: uint8 [..., 3, height, width]. Every rounding is Pillow's: float64 in the
bicubic coefficients, integers elsewhere. No product may be fused with the sum that follows it, so
these functions are meant for eager execution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amdim_fast.views.params import ViewParams
from amdim_fast.views.reference_color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grayscale,
)

_WEIGHT_BITS = 22
_BATCH_PIXELS = 1 << 18


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel, a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def bicubic_weights(start: Tensor, length: Tensor, source: int, output: int) -> Tensor:
    """Antialiased bicubic weights along one axis, integers scaled by 2^22.

    Args:
        start: int64 [M], first pixel of each crop; its pixels beyond the crop get no weight.
        length: int64 [M], pixels of each crop.
        source: pixels of the axis.
        output: pixels wanted.

    Returns:
        float64 [M, output, source] holding integers.
    """
    extent = length.double()[:, None]
    scale = extent / torch.full_like(extent, output)
    filter_scale = scale.clamp(min=1.0)
    support = 2.0 * filter_scale
    place = torch.arange(output, dtype=torch.float64, device=start.device)
    center = (place + 0.5) * scale
    first = (center - support + 0.5).long().clamp(min=0)
    last = torch.minimum((center + support + 0.5).long(), length[:, None])

    taps = int((last - first).max()) if last.numel() else 0
    position = first + torch.arange(taps, device=start.device)[:, None, None]
    weight = cubic((position - center + 0.5) * filter_scale.reciprocal())
    weight = torch.where(position < last, weight, 0.0)
    total = torch.zeros_like(center)
    for tap in weight:  # one after the other: the order of a float sum is part of the result
        total = total + tap
    scaled = weight / total * float(1 << _WEIGHT_BITS)
    fixed = (scaled + torch.where(weight < 0, -0.5, 0.5)).trunc()

    dense = torch.zeros(len(start), output, source, dtype=torch.float64, device=start.device)
    column = (position + start[:, None]).clamp(max=source - 1)
    return dense.scatter_add_(2, column.movedim(0, 2), fixed.movedim(0, 2))


def resize(image: Tensor, row_weights: Tensor, column_weights: Tensor) -> Tensor:
    """Horizontal pass, rounding to uint8, vertical pass, rounding to uint8.

    Args:
        image: uint8 [M, 3, H, W].
        row_weights: [M, h, H] from ``bicubic_weights``.
        column_weights: [M, w, W].

    Returns:
        uint8 [M, 3, h, w]. Sums of integers below 2^53 are exact in float64 in any order.
    """
    batch, channels, height, _ = image.shape
    width = column_weights.shape[1]
    lines = image.double().flatten(1, 2)
    narrowed = _rounded_pixels(torch.bmm(lines, column_weights.mT))
    lines = narrowed.view(batch, channels, height, width).movedim(1, 2).flatten(2)
    shrunk = _rounded_pixels(torch.bmm(row_weights, lines))
    return shrunk.to(torch.uint8).unflatten(2, (channels, width)).movedim(2, 1).contiguous()


def _rounded_pixels(weighted: Tensor) -> Tensor:
    """Undo the 2^22 and round halves up; scaling by a power of two and adding 0.5 are exact."""
    return weighted.mul_(2.0**-_WEIGHT_BITS).add_(0.5).floor_().clamp_(0.0, 255.0)


def translate(image: Tensor, offset: Tensor) -> Tensor:
    """Move the content of uint8 [M, 3, H, W] by int [M, 2] = dy, dx; borders reflect (101)."""
    height, width = image.shape[-2:]
    rows = _reflected(offset[:, 0], height)[:, None, :, None].expand_as(image)
    columns = _reflected(offset[:, 1], width)[:, None, None, :].expand_as(image)
    return image.gather(-2, rows).gather(-1, columns)


def _reflected(offset: Tensor, length: int) -> Tensor:
    index = (torch.arange(length, device=offset.device) - offset[:, None].long()).abs()
    return torch.minimum(index, 2 * (length - 1) - index)


def geometry(image: Tensor, params: ViewParams, size: int) -> Tensor:
    """Flip, translate, crop and resize: uint8 [N, 3, H, W] to [V, N, 3, size, size]."""
    views, height, width = params.views, *image.shape[-2:]
    flip, offset, crop = (
        field.flatten(0, 1) for field in (params.flip, params.translate, params.crop.long())
    )
    moves = bool(offset.any())
    flips = bool(flip.any())
    result = image.new_empty(views * len(image), 3, size, size)
    step = max(1, _BATCH_PIXELS // (3 * height * max(width, size)))
    for begin in range(0, len(result), step):
        part = slice(begin, begin + step)
        source = torch.arange(len(result), device=image.device)[part] % len(image)
        pixels = image[source]
        if flips:
            pixels = torch.where(flip[part, None, None, None], pixels.flip(-1), pixels)
        if moves:
            pixels = translate(pixels, offset[part])
        top, left, crop_height, crop_width = crop[part].unbind(-1)
        row_weights = bicubic_weights(top, crop_height, height, size)
        column_weights = bicubic_weights(left, crop_width, width, size)
        result[part] = resize(pixels, row_weights, column_weights)
    return result.unflatten(0, (views, len(image)))


def jitter(image: Tensor, params: ViewParams) -> Tensor:
    """Color jitter in each view's own order, then grayscale: uint8 [V, N, 3, h, w], same out."""
    adjustments = (
        (adjust_brightness, params.brightness.flatten()),
        (adjust_contrast, params.contrast.flatten()),
        (adjust_saturation, params.saturation.flatten()),
        (adjust_hue, params.hue.flatten()),
    )
    result = image.flatten(0, 1).clone()
    applies = params.jitter.flatten()
    for operation in params.order.flatten(0, 1).unbind(-1):
        for code, (adjust, factor) in enumerate(adjustments):
            chosen = (applies & (operation == code)).nonzero()[:, 0]
            if len(chosen):
                result[chosen] = adjust(result[chosen], factor[chosen])
    chosen = params.gray.flatten().nonzero()[:, 0]
    result[chosen] = grayscale(result[chosen]).expand(-1, 3, -1, -1)
    return result.view_as(image)


def make_views(images: Tensor | Sequence[Tensor], params: ViewParams, size: int) -> Tensor:
    """Pixels of all views, before normalization.

    Args:
        images: uint8 [N, H, W, 3] with any strides, or N tensors [H, W, 3] of any sizes.
        params: [V, N], valid for these images and on their device.
        size: side of the output.

    Returns:
        uint8 [V, N, size, size, 3], a permuted view of planar memory.
    """
    if isinstance(images, Tensor):
        resized = geometry(images.movedim(-1, -3), params, size)
    else:
        resized = _geometry_of_list(images, params, size)
    return jitter(resized, params).movedim(-3, -1)


def _geometry_of_list(images: Sequence[Tensor], params: ViewParams, size: int) -> Tensor:
    device = params.crop.device
    shape = (params.views, len(images), 3, size, size)
    resized = torch.empty(shape, dtype=torch.uint8, device=device)
    by_shape: dict[torch.Size, list[int]] = {}
    for index, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(index)
    for same in by_shape.values():
        chosen = torch.tensor(same, device=device)
        batch = torch.stack([images[index] for index in same]).movedim(-1, -3)
        resized[:, chosen] = geometry(batch, params[chosen], size)
    return resized


def center_crop(images: Tensor, resize_to: int, size: int) -> Tensor:
    """Resize the shorter side, then crop the center: uint8 [N, H, W, 3] to [N, size, size, 3].

    Equals torchvision's ``Resize(resize_to, BICUBIC)`` and ``CenterCrop(size)`` on Pillow images.
    """
    lengths = images.shape[1:3]
    weights = []
    for length in lengths:
        output = resize_to * length // min(lengths)
        begin = round((output - size) / 2)
        whole = torch.tensor([length], device=images.device)
        weight = bicubic_weights(torch.zeros_like(whole), whole, length, output)
        weights.append(weight[:, begin : begin + size].expand(len(images), -1, -1))
    return resize(images.movedim(-1, -3), *weights).movedim(-3, -1)


def normalize(
    pixels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """``(pixels / 255 - mean) / std`` through a table of its 256 x 3 float32 values.

    Args:
        pixels: uint8 [..., h, w, 3].
        mean: three, in 0..1.
        std: three, not 0.
        dtype: what the float32 values are rounded to.
        channels_last: keep the channel innermost in memory.

    Returns:
        [..., 3, h, w]. The table is made on the CPU, so that all devices agree.
    """
    levels = torch.arange(256, dtype=torch.uint8, device="cpu").float().div(255)[:, None]
    shift, scale = (torch.tensor(v, dtype=torch.float32, device="cpu") for v in (mean, std))
    table = levels.sub(shift).div(scale).to(dtype).to(pixels.device)
    if channels_last:
        index = pixels.int() * 3 + torch.arange(3, dtype=torch.int32, device=pixels.device)
        return table.flatten()[index.contiguous()].movedim(-1, -3)
    planes = [table[plane.int(), c] for c, plane in enumerate(pixels.unbind(-1))]
    return torch.stack(planes, -3)
