"""Color operations of the reference against Pillow and torchvision, over all colors."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms import functional as tv

from amdim_fast.views import reference_color
from tests.data.image_files import to_pillow
from tests.views.cases import from_pillow, seeded, smooth_noise, white_noise


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (reference_color.adjust_brightness, ImageEnhance.Brightness),
        (reference_color.adjust_contrast, ImageEnhance.Contrast),
        (reference_color.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_color_functions_equal_pillow_enhancers(ours, theirs):
    factors = torch.rand(40, generator=seeded()) * 3
    for image in (smooth_noise(31, 17), white_noise(8, 40)):
        result = ours(image.movedim(-1, 0).expand(40, -1, -1, -1), factors).movedim(1, -1)
        for pixels, factor in zip(result, factors.tolist(), strict=True):
            expected = from_pillow(theirs(to_pillow(image)).enhance(factor))
            assert torch.equal(pixels, expected)


def test_contrast_rounds_the_mean_half_up():
    image = torch.tensor([10, 11], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert reference_color.adjust_contrast(image, torch.zeros(1)).unique().tolist() == [11]


def test_hue_steps_on_both_sides_of_every_integer():
    steps = torch.arange(-127, 128) / 255
    turns = torch.cat([steps, torch.nextafter(steps, torch.zeros(()))])
    assert len((turns.double() * 255).int().unique()) == 255
    image = smooth_noise(6, 7)
    ours = reference_color.adjust_hue(image.movedim(-1, 0).expand(510, -1, -1, -1), turns)
    for pixels, turn in zip(ours, turns.tolist(), strict=True):
        theirs = tv.adjust_hue(to_pillow(image), turn)
        assert torch.equal(pixels.movedim(0, -1), from_pillow(theirs))


def test_blend_is_not_fused_for_any_pair_of_values():
    start, end = (
        axis.to(torch.uint8)
        for axis in torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    )
    fused_differs = 0
    near_one = [1 - i / j for i in (1, 2, 5) for j in range(200, 256)]
    for factor in torch.cat(
        [torch.tensor(near_one), torch.rand(30, generator=seeded()) * 2]
    ).tolist():
        ours = reference_color.blend(start[None], end[None], torch.tensor(factor))[0]
        theirs = from_pillow(Image.blend(to_pillow(start), to_pillow(end), factor))
        assert torch.equal(ours, theirs)
        exact = start.double() + factor * (end.double() - start.double())
        fused = exact.float().clamp(0, 255).to(torch.uint8)
        fused_differs += int((fused != theirs).sum())
    assert fused_differs > 0


def all_triples(chunk):
    """Rows of a 4096 x 4096 picture of all colors, 256 rows per chunk: planar [3, 256, 4096]."""
    code = torch.arange(chunk << 20, (chunk + 1) << 20, dtype=torch.int32).view(256, 4096)
    return torch.stack([code >> 16, (code >> 8) & 0xFF, code & 0xFF]).to(torch.uint8)


def test_every_color_to_gray_to_hsv_and_back():
    for chunk in range(16):
        planes = all_triples(chunk)
        picture = to_pillow(planes.movedim(0, -1))
        assert torch.equal(reference_color.grayscale(planes)[0], from_pillow(picture.convert("L")))
        hsv = reference_color.rgb_to_hsv(planes)
        in_hsv = picture.convert("HSV")
        assert torch.equal(hsv.movedim(0, -1), from_pillow(in_hsv))
        back = reference_color.hsv_to_rgb(hsv)
        assert torch.equal(back.movedim(0, -1), from_pillow(in_hsv.convert("RGB")))


def test_every_hsv_triple_to_rgb():
    for chunk in range(16):
        planes = all_triples(chunk)
        pixels = planes.movedim(0, -1).contiguous().numpy()
        bands = [Image.fromarray(np.ascontiguousarray(pixels[..., band])) for band in range(3)]
        expected = from_pillow(Image.merge("HSV", bands).convert("RGB"))
        assert torch.equal(reference_color.hsv_to_rgb(planes).movedim(0, -1), expected)
