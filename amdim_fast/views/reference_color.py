"""Color operations as Pillow < 13 and torchvision do them on uint8, bit for bit, in plain PyTorch.

Images are planar: uint8 [..., 3, height, width]. Every rounding is Pillow's: float32 steps in
``blend``, float64 in the hue, integers elsewhere. No product may be fused with the sum that
follows it, so these functions are meant for eager execution.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Red, green, blue of each sextant of the hue circle, as indices of (value, p, q, t).
_SEXTANTS = ((0, 3, 1), (2, 0, 1), (1, 0, 3), (1, 2, 0), (3, 1, 0), (0, 1, 2))


def grayscale(image: Tensor) -> Tensor:
    """Luma of ITU-R 601: uint8 [..., 3, h, w] to [..., 1, h, w]."""
    red, green, blue = image.int().split(1, dim=-3)
    weighted = 19595 * red + 38470 * green + 7471 * blue
    return ((weighted + 0x8000) >> 16).to(torch.uint8)


def blend(degenerate: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """``degenerate + factor * (image - degenerate)``, clamped, truncated; factor float32 [...]."""
    start = degenerate.float()
    scaled = factor[..., None, None, None] * (image.float() - start)
    return (start + scaled).clamp(0, 255).to(torch.uint8)


def adjust_brightness(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return blend(image.new_zeros(()), image, factor)


def adjust_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each image, rounded to an integer, halves up."""
    luma = grayscale(image)
    pixels = image.shape[-2] * image.shape[-1]
    total = luma.sum((-3, -2, -1), keepdim=True, dtype=torch.int64)
    mean = torch.div(2 * total + pixels, 2 * pixels, rounding_mode="floor")
    return blend(mean, image, factor)


def adjust_saturation(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luma of each pixel."""
    return blend(grayscale(image), image, factor)


def adjust_hue(image: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue by whole steps of 1/255, through 8-bit HSV; turns float32 [...]."""
    steps = (turns.double() * 255.0).int()
    hue, saturation, value = rgb_to_hsv(image).unbind(-3)
    turned = (hue.int() + steps[..., None, None]) & 0xFF
    return hsv_to_rgb(torch.stack([turned.to(torch.uint8), saturation, value], -3))


def rgb_to_hsv(image: Tensor) -> Tensor:
    """Pillow's 8-bit HSV: uint8 [..., 3, h, w] to the same shape, all planes 0..255."""
    red, green, blue = image.unbind(-3)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = (high - low).int()
    saturation = torch.div(255 * chroma, high.clamp(min=1), rounding_mode="floor")

    divisor = chroma.clamp(min=1).float()
    from_red = (high - red).float() / divisor
    from_green = (high - green).float() / divisor
    from_blue = (high - blue).float() / divisor
    red_leads = red == high
    green_leads = green == high
    base = torch.where(red_leads, 0.0, torch.where(green_leads, 2.0, 4.0).double())
    plus = torch.where(red_leads, from_blue, torch.where(green_leads, from_red, from_green))
    minus = torch.where(red_leads, from_green, torch.where(green_leads, from_blue, from_red))
    sixths = (base + plus.double() - minus.double()).float()
    # CUDA may multiply by 1/6 instead, which gives the same hue for all 2^24 colors.
    turn = torch.frac(sixths.double() / 6.0 + 1.0).float()
    hue = (turn.double() * 255.0).int()
    return torch.stack([hue.to(torch.uint8), saturation.to(torch.uint8), high], -3)


def hsv_to_rgb(image: Tensor) -> Tensor:
    """Inverse of ``rgb_to_hsv`` up to its rounding; exact in integers."""
    hue, saturation, value = image.int().unbind(-3)
    sextant = torch.div(6 * hue, 255, rounding_mode="floor")
    fraction = 6 * hue - 255 * sextant
    p = _rounded_ratio(value * (255 - saturation), 255)
    q = _rounded_ratio(value * (65025 - saturation * fraction), 65025)
    t = _rounded_ratio(value * (65025 - saturation * (255 - fraction)), 65025)
    levels = torch.stack([value, p, q, t], -3).to(torch.uint8)
    pick = torch.tensor(_SEXTANTS, device=image.device).T[:, sextant % 6]
    return levels.gather(-3, pick.movedim(0, -3))


def _rounded_ratio(numerator: Tensor, denominator: int) -> Tensor:
    return torch.div(2 * numerator + denominator, 2 * denominator, rounding_mode="floor")
