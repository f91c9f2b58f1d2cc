"""The pixel functions that the GPU runs, compiled for the CPU, against Pillow and NumPy."""

import math

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as tv

from tests.csrc.build import load_pixel

CHUNKS = 4


@pytest.fixture(scope="session")
def pixel():
    return load_pixel()


def all_triples(chunk):
    """A quarter of all 2^24 triples: uint8 [1024, 4096, 3]."""
    length = 2**24 // CHUNKS
    code = np.arange(chunk * length, (chunk + 1) * length, dtype=np.int32).reshape(-1, 4096)
    return np.stack([code >> 16, code >> 8 & 0xFF, code & 0xFF], -1).astype(np.uint8)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_color_to_luma_and_hsv(pixel, chunk):
    pixels = all_triples(chunk)
    picture = Image.fromarray(pixels)
    assert np.array_equal(pixel.luma(*np.moveaxis(pixels, -1, 0)), np.array(picture.convert("L")))
    assert np.array_equal(pixel.rgb_to_hsv(pixels), np.array(picture.convert("HSV")))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_hsv_triple_to_rgb(pixel, chunk):
    pixels = all_triples(chunk)
    bands = [Image.fromarray(np.ascontiguousarray(pixels[..., band])) for band in range(3)]
    expected = np.array(Image.merge("HSV", bands).convert("RGB"))
    assert np.array_equal(pixel.hsv_to_rgb(pixels), expected)


def some_colors(count=20_000):
    random = np.random.default_rng(0).integers(0, 256, (count, 3), dtype=np.uint8)
    corners = np.stack(np.meshgrid(*[np.uint8([0, 1, 127, 254, 255])] * 3), -1).reshape(-1, 3)
    return np.concatenate([random, corners])


def torchvision_hue(pixels, turns):
    return np.array(tv.adjust_hue(Image.fromarray(pixels[None]), turns))[0]


@pytest.mark.parametrize("turns", [-0.5, -0.3, -1 / 255, 0.0, 1 / 255, 0.1, 0.2, 0.499, 0.5])
def test_turned_hue_equals_torchvision(pixel, turns):
    pixels = some_colors()
    steps = int(pixel.hue_steps(np.float32(turns)))
    assert np.array_equal(pixel.turn_hue(pixels, steps), torchvision_hue(pixels, turns))


def test_hue_steps_are_torchvisions_on_both_sides_of_every_integer(pixel):
    exact = (np.arange(-127, 128) / 255).astype(np.float32)
    beside = [np.nextafter(exact, np.float32(end)) for end in (-1, 1)]
    turns = np.concatenate([exact, *beside, np.linspace(-0.5, 0.5, 4001, dtype=np.float32)])
    expected = np.trunc(turns.astype(np.float64) * 255).astype(np.int64)
    assert np.array_equal(pixel.hue_steps(turns), expected)
    one = np.array([[200, 30, 77]], dtype=np.uint8)
    for turn in np.concatenate([exact, *beside]):
        step = int(pixel.hue_steps(turn))
        assert np.array_equal(pixel.turn_hue(one, step), torchvision_hue(one, float(turn)))


def blend_factors():
    near_one = [1 - i / j for i in (1, 2, 5) for j in range(200, 256, 11)]
    special = [0.0, 1e-30, 1e-3, 0.5, 1 - 2**-24, 1.0, 1 + 2**-23, 2.0, 40.0, 1e30]
    random = np.random.default_rng(1).uniform(0, 2, 40)
    return np.concatenate([near_one, special, random]).astype(np.float32)


def test_blend_of_every_pair_is_two_float32_roundings(pixel):
    degenerate, level = np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2, indexing="ij")
    start = degenerate.astype(np.float32)
    difference = level.astype(np.float32) - start
    fused_differs = 0
    for factor in blend_factors():
        mixed = start + factor * difference
        expected = np.trunc(np.clip(mixed, 0, 255)).astype(np.uint8)
        assert np.array_equal(pixel.blend(degenerate, level, factor), expected)
        exact = start.astype(np.float64) + np.float64(factor) * difference
        fused = np.trunc(np.clip(exact.astype(np.float32), 0, 255)).astype(np.uint8)
        fused_differs += int((fused != expected).sum())
    assert fused_differs > 0


def test_blend_of_every_pair_equals_pillow(pixel):
    degenerate, level = np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2, indexing="ij")
    pictures = Image.fromarray(degenerate), Image.fromarray(level)
    for factor in blend_factors():
        expected = np.array(Image.blend(*pictures, float(factor)))
        assert np.array_equal(pixel.blend(degenerate, level, factor), expected), factor


def test_a_quotient_is_corrected_from_either_side(pixel):
    divisors = np.concatenate([np.arange(1, 256), [65025]])
    for b in divisors:
        a = np.arange(0, 256 * b, max(1, b // 255))
        a = np.unique(np.concatenate([a, np.arange(b - 1, 256 * b, b)]))
        a = a[a < 2**24]
        for off in (-1, 0, 1):
            found = pixel.corrected_quotient(*np.float32([a, np.full_like(a, b), a // b + off]))
            assert np.array_equal(found, a // b)


def keys(x):
    """Cubic convolution (Keys 1981), a = -0.5."""
    a, x = -0.5, np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def exact_taps(place, length, output):
    """First tap and normalized weights, not yet rounded to integers."""
    scale = length / output
    stretch = max(scale, 1.0)
    center = (place + 0.5) * scale
    first = max(math.floor(center - 2 * stretch + 0.5), 0)
    last = min(math.floor(center + 2 * stretch + 0.5), length)
    weights = keys((np.arange(first, last) + 0.5 - center) / stretch)
    return first, weights / weights.sum()


LENGTHS = ((1, 1), (1, 7), (2, 9), (7, 1), (8, 8), (33, 32), (90, 32), (700, 8), (5000, 3), (3, 99))


@pytest.mark.parametrize(("length", "output"), LENGTHS)
def test_bicubic_taps_are_the_rounded_weights(pixel, length, output):
    for place in range(output):
        first, weights = pixel.bicubic_taps(place, length, output)
        expected_first, expected = exact_taps(place, length, output)
        assert (first, len(weights)) == (expected_first, len(expected))
        assert np.abs(weights - expected * 2**22).max() < 0.5 + 1e-4


@pytest.mark.parametrize(("length", "output"), LENGTHS)
def test_bicubic_taps_resize_as_pillow(pixel, length, output):
    row = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8)
    sharp = np.where(row < 128, 0, 255).astype(np.uint8)
    for levels in (row, sharp):
        found = []
        for place in range(output):
            first, weights = pixel.bicubic_taps(place, length, output)
            pixels = levels[first : first + len(weights)].astype(np.int64)
            found.append((2**21 + int(pixels @ weights)) >> 22)
        picture = Image.fromarray(levels[None]).resize((output, 1), Image.Resampling.BICUBIC)
        assert np.array_equal(np.clip(found, 0, 255), np.array(picture)[0])


def test_bad_arguments_are_named(pixel):
    with pytest.raises(ValueError, match=r"pixels must be uint8 \[\.\.\., 3\]"):
        pixel.rgb_to_hsv(np.zeros((4, 4), np.uint8))
    for arguments in ((0, 0, 1), (0, 1, 0), (-1, 4, 4), (4, 4, 4)):
        with pytest.raises(ValueError, match="length >= 1 and 0 <= place < output"):
            pixel.bicubic_taps(*arguments)
