import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from amdim_fast.views import reference
from amdim_fast.views.augment import augment
from amdim_fast.views.params import POLICIES, ViewParams
from amdim_fast.views.sampling import sample_view_params
from tests.data.image_files import to_pillow
from tests.views.cases import HALF, from_pillow, plain, seeded, smooth_noise, white_noise

GOLDEN = Path(__file__).parents[1] / "golden" / "pil_views.npz"


def special_images(side=24):
    ramp = torch.arange(side * side).view(side, side, 1).expand(-1, -1, 3) % 256
    flat = [torch.full((side, side, 3), value) for value in (0, 1, 127, 254, 255)]
    colors = torch.tensor(list(itertools.product((0, 255), repeat=3)))
    saturated = colors[torch.arange(side * side) % 8].view(side, side, 3)
    one_color = torch.tensor([255, 0, 3]).expand(side, side, 3)
    images = [ramp, *flat, saturated, one_color]
    images = [image.to(torch.uint8) for image in images]
    return [*images, white_noise(side, side), smooth_noise(side, side)]


def pillow_view(image, params, view, index, size):
    """The same view by torchvision on Pillow, and by NumPy's own reflection."""
    field = {name: getattr(params, name)[view, index].tolist() for name in vars(params)}
    pixels = image.numpy()
    if field["flip"]:
        pixels = pixels[:, ::-1]
    if any(field["translate"]):
        (down, right), (height, width) = field["translate"], pixels.shape[:2]
        border = [(abs(down), abs(down)), (abs(right), abs(right)), (0, 0)]
        padded = np.pad(pixels, border[: pixels.ndim], mode="reflect")
        top, left = abs(down) - down, abs(right) - right
        pixels = padded[top : top + height, left : left + width]
    result = Image.fromarray(np.ascontiguousarray(pixels))
    result = tv.resized_crop(result, *field["crop"], [size, size], InterpolationMode.BICUBIC)
    if field["jitter"]:
        operations = (
            (tv.adjust_brightness, field["brightness"]),
            (tv.adjust_contrast, field["contrast"]),
            (tv.adjust_saturation, field["saturation"]),
            (tv.adjust_hue, field["hue"]),
        )
        for code in field["order"]:
            adjust, factor = operations[code]
            result = adjust(result, factor)
    return tv.to_grayscale(result, 3) if field["gray"] else result


def assert_equals_pillow(images, params, size):
    pixels = reference.make_views(images, params, size)
    floats = augment(images, params, size=size, **HALF)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (params.views, len(images), size, size, 3)
    for view, index in itertools.product(range(params.views), range(len(images))):
        expected = pillow_view(images[index], params, view, index, size)
        assert torch.equal(pixels[view, index], from_pillow(expected)), (view, index)
        normalized = tv.normalize(tv.to_tensor(expected), **HALF)
        assert torch.equal(floats[view, index], normalized), (view, index)


def golden_case(policy):
    with np.load(GOLDEN) as archive:
        stored = {
            name.removeprefix(f"{policy}_"): torch.from_numpy(archive[name])
            for name in archive.files
            if name.startswith(policy)
        }
    params = ViewParams(
        crop=stored["crop_tlhw"].int()[None],
        translate=stored["translate_yx"].int()[None],
        flip=stored["flip"][None],
        jitter=stored["jitter"][None],
        order=stored["order"].int()[None],
        brightness=stored["brightness"].float()[None],
        contrast=stored["contrast"].float()[None],
        saturation=stored["saturation"].float()[None],
        hue=stored["hue"].float()[None],
        gray=stored["gray"][None],
    )
    return stored, params


@pytest.mark.parametrize("policy", ["cifar", "stl10", "imagenet128"])
def test_golden_views(policy):
    stored, params = golden_case(policy)
    size = POLICIES[policy].size
    pixels = reference.make_views(stored["image"], params, size)[0]
    assert torch.equal(pixels, stored["view_uint8"])
    mean, std = POLICIES[policy].mean, POLICIES[policy].std
    floats = augment(stored["image"], params, size=size, mean=mean, std=std)[0, :4]
    assert torch.equal(floats, stored["view_float_first4"])
    assert (mean, std) == (tuple(stored["mean"].tolist()), tuple(stored["std"].tolist()))


def test_golden_check_sees_a_changed_parameter():
    stored, params = golden_case("stl10")
    changed = replace(params, brightness=params.brightness + 1 / 64)
    pixels = reference.make_views(stored["image"], changed, 64)[0]
    assert not torch.equal(pixels, stored["view_uint8"])


@pytest.mark.parametrize(("policy", "size"), [("cifar", 32), ("stl10", 64), ("imagenet128", 40)])
def test_random_views_equal_torchvision_on_pillow(policy, size):
    extents = [(32, 32), (96, 96), (180, 240), (171, 64), (17, 200), (5, 9), (64, 64), (61, 128)]
    images = [
        make(*extent, seed)
        for seed, (extent, make) in enumerate(
            itertools.product(extents, (white_noise, smooth_noise, smooth_noise))
        )
    ]
    sizes = [image.shape[:2] for image in images]
    params = sample_view_params(POLICIES[policy], sizes, generator=seeded(5))
    assert_equals_pillow(images, params, size)


def test_all_orders():
    images = smooth_noise(24, 24)[None].expand(24, -1, -1, -1)
    base = plain([(24, 24)] * 24)
    params = replace(
        base,
        jitter=~base.jitter,
        order=torch.tensor(list(itertools.permutations(range(4))), dtype=torch.int32)[None],
        brightness=base.brightness * 1.3,
        contrast=base.contrast * 0.7,
        saturation=base.saturation * 1.4,
        hue=base.hue + 0.17,
    )
    assert_equals_pillow(images, params, 24)
    assert len(torch.unique(reference.make_views(images, params, 24)[0], dim=0)) > 12


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "gray"])
def test_each_color_operation_alone(name):
    factors = [0.0, 1e-3, 0.3, 1 - 2**-24, 1.0, 1 + 2**-23, 1.4, 2.7, 40.0]
    if name == "hue":
        factors = [-0.5, -0.499, -0.2, -1 / 255, -1e-3, 0.0, 1e-3, 1 / 255, 0.1, 0.498, 0.5]
    images = torch.stack(special_images())
    for factor in factors:
        base = plain([(24, 24)] * len(images))
        turns_gray = name == "gray"
        value = torch.full_like(base.hue, factor)
        change = {"gray": ~base.gray} if turns_gray else {"jitter": ~base.jitter, name: value}
        assert_equals_pillow(images, replace(base, **change), 24)


@pytest.mark.parametrize(
    ("extent", "crop", "size"),
    [
        ((32, 32), (0, 0, 32, 32), 32),
        ((40, 40), (3, 5, 32, 32), 32),
        ((40, 40), (39, 0, 1, 1), 32),
        ((40, 40), (7, 38, 1, 2), 5),
        ((8, 8), (0, 0, 8, 8), 64),
        ((50, 3), (0, 0, 50, 3), 16),
        ((3, 700), (0, 0, 3, 700), 16),
        ((300, 300), (1, 1, 299, 299), 1),
        ((256, 640), (0, 141, 256, 358), 128),
        ((64, 96), (10, 20, 32, 64), 32),
    ],
)
def test_crops_of_all_shapes(extent, crop, size):
    images = torch.stack([white_noise(*extent), smooth_noise(*extent)])
    params = replace(
        plain([extent] * 2), crop=torch.tensor(crop, dtype=torch.int32).repeat(1, 2, 1)
    )
    assert_equals_pillow(images, params, size)
    if crop[2:] == (size, size):
        top, left = crop[:2]
        part = images[:, top : top + size, left : left + size]
        assert torch.equal(reference.make_views(images, params, size)[0], part)


def test_every_scale_of_the_weights():
    image = white_noise(90, 90)
    picture = to_pillow(image)
    planes = image.movedim(-1, 0)[None]
    for length in range(1, 91):
        start, span = torch.tensor([90 - length]), torch.tensor([length])
        weights = reference.bicubic_weights(start, span, 90, 32)
        ours = reference.resize(planes, weights, weights)[0].movedim(0, -1)
        corner = picture.crop((90 - length, 90 - length, 90, 90))
        assert torch.equal(ours, from_pillow(corner.resize((32, 32), Image.Resampling.BICUBIC)))


def test_the_resize_check_sees_other_roundings():
    image = white_noise(90, 90)
    planes = image.movedim(-1, 0)[None]
    weights = reference.bicubic_weights(torch.tensor([0]), torch.tensor([90]), 90, 32)
    ours = reference.resize(planes, weights, weights)
    vertical_first = reference.resize(planes.mT.contiguous(), weights, weights).mT
    assert not torch.equal(ours, vertical_first)
    coarse = (weights / 2**8).round() * 2**8
    assert not torch.equal(ours, reference.resize(planes, coarse, coarse))
    once = torch.einsum("oh,chw,pw->cop", weights[0], planes[0].double(), weights[0]) / 2.0**44
    assert not torch.equal(ours[0], (once + 0.5).floor().clamp(0, 255).to(torch.uint8))


def test_all_translations_of_a_flipped_and_a_straight_image():
    offsets = list(itertools.product(range(-4, 5), repeat=2)) * 2
    images = white_noise(32, 32)[None].expand(162, -1, -1, -1)
    base = plain([(32, 32)] * 162)
    flip = (torch.arange(162) < 81)[None]
    translate = torch.tensor(offsets, dtype=torch.int32)[None]
    assert_equals_pillow(images, replace(base, translate=translate, flip=flip), 32)


def test_translation_up_to_the_far_edge():
    image = white_noise(3, 2)
    offsets = torch.tensor([[2, 1], [-2, -1], [0, 1]], dtype=torch.int32)[None]
    params = replace(plain([(3, 2)] * 3), translate=offsets)
    assert_equals_pillow(image[None].expand(3, -1, -1, -1), params, 4)
