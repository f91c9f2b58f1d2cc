import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv
from view_cases import HALF, plain, seeded, smooth_noise, white_noise

from amdim_fast.augmentation import TwoViews, augment, center_view, sample_view_params
from amdim_fast.reference import augment as reference
from amdim_fast.views import POLICIES, ViewParams

GOLDEN = Path(__file__).parent / "golden" / "pil_views.npz"


def special_images(side=24):
    ramp = torch.arange(side * side).view(side, side, 1).expand(-1, -1, 3) % 256
    flat = [torch.full((side, side, 3), value) for value in (0, 1, 127, 254, 255)]
    colours = torch.tensor(list(itertools.product((0, 255), repeat=3)))
    saturated = colours[torch.arange(side * side) % 8].view(side, side, 3)
    one_colour = torch.tensor([255, 0, 3]).expand(side, side, 3)
    images = [ramp, *flat, saturated, one_colour]
    images = [image.to(torch.uint8) for image in images]
    return [*images, white_noise(side, side), smooth_noise(side, side)]


def to_pillow(image):
    return Image.fromarray(image.contiguous().numpy())


def from_pillow(image):
    return torch.from_numpy(np.array(image))


def pillow_view(image, params, view, index, size):
    """The same view by torchvision on Pillow, and by NumPy's own reflection."""
    field = {name: getattr(params, name)[view, index].tolist() for name in vars(params)}
    pixels = image.numpy()
    if field["flip"]:
        pixels = pixels[:, ::-1]
    if any(field["translate"]):
        (down, right), (height, width) = field["translate"], pixels.shape[:2]
        border = [(abs(down), abs(down)), (abs(right), abs(right)), (0, 0)]
        padded = np.pad(pixels, border, mode="reflect")
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
def test_each_colour_operation_alone(name):
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
    ("ours", "theirs"),
    [
        (reference.adjust_brightness, ImageEnhance.Brightness),
        (reference.adjust_contrast, ImageEnhance.Contrast),
        (reference.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_colour_functions_equal_pillow_enhancers(ours, theirs):
    factors = torch.rand(40, generator=seeded()) * 3
    for image in (smooth_noise(31, 17), white_noise(8, 40)):
        result = ours(image.movedim(-1, 0).expand(40, -1, -1, -1), factors).movedim(1, -1)
        for pixels, factor in zip(result, factors.tolist(), strict=True):
            expected = from_pillow(theirs(to_pillow(image)).enhance(factor))
            assert torch.equal(pixels, expected)


def test_contrast_rounds_the_mean_half_up():
    image = torch.tensor([10, 11], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert reference.adjust_contrast(image, torch.zeros(1)).unique().tolist() == [11]


def test_hue_steps_on_both_sides_of_every_integer():
    steps = torch.arange(-127, 128) / 255
    turns = torch.cat([steps, torch.nextafter(steps, torch.zeros(()))])
    assert len((turns.double() * 255).int().unique()) == 255
    image = smooth_noise(6, 7)
    ours = reference.adjust_hue(image.movedim(-1, 0).expand(510, -1, -1, -1), turns)
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
        ours = reference.blend(start[None], end[None], torch.tensor(factor))[0]
        theirs = from_pillow(Image.blend(to_pillow(start), to_pillow(end), factor))
        assert torch.equal(ours, theirs)
        exact = start.double() + factor * (end.double() - start.double())
        fused = exact.float().clamp(0, 255).to(torch.uint8)
        fused_differs += int((fused != theirs).sum())
    assert fused_differs > 0


def all_triples(chunk):
    """Rows of a 4096 x 4096 picture of all colours, 256 rows a chunk: planar [3, 256, 4096]."""
    code = torch.arange(chunk << 20, (chunk + 1) << 20, dtype=torch.int32).view(256, 4096)
    return torch.stack([code >> 16, (code >> 8) & 0xFF, code & 0xFF]).to(torch.uint8)


def test_every_colour_to_gray_to_hsv_and_back():
    for chunk in range(16):
        planes = all_triples(chunk)
        picture = to_pillow(planes.movedim(0, -1))
        assert torch.equal(reference.grayscale(planes)[0], from_pillow(picture.convert("L")))
        hsv = reference.rgb_to_hsv(planes)
        in_hsv = picture.convert("HSV")
        assert torch.equal(hsv.movedim(0, -1), from_pillow(in_hsv))
        back = reference.hsv_to_rgb(hsv)
        assert torch.equal(back.movedim(0, -1), from_pillow(in_hsv.convert("RGB")))


def test_every_hsv_triple_to_rgb():
    for chunk in range(16):
        planes = all_triples(chunk)
        pixels = planes.movedim(0, -1).contiguous().numpy()
        bands = [Image.fromarray(np.ascontiguousarray(pixels[..., band])) for band in range(3)]
        expected = from_pillow(Image.merge("HSV", bands).convert("RGB"))
        assert torch.equal(reference.hsv_to_rgb(planes).movedim(0, -1), expected)


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


def test_layouts_strides_and_lists_agree():
    images = torch.stack([white_noise(20, 28, seed) for seed in range(5)])
    params = sample_view_params(POLICIES["stl10"], [(20, 28)] * 5, generator=seeded())
    expected = augment(images, params, size=16, **HALF)
    strided = torch.zeros(10, 20, 56, 4, dtype=torch.uint8)[::2, :, ::2, :3].copy_(images)
    reversed_rows = images.flip(1).movedim(1, 0).contiguous().movedim(0, 1).flip(1)
    planar = images.movedim(-1, 1)
    for same in (strided, reversed_rows, planar, planar.contiguous(), list(images)):
        assert torch.equal(augment(same, params, size=16, **HALF), expected)
    before = images.clone()
    augment(images, params, size=16, **HALF)
    assert torch.equal(images, before)


def test_ambiguous_layout_is_read_as_channels_last():
    images = torch.stack([white_noise(3, 3, seed) for seed in range(2)])
    params = plain([(3, 3)] * 2)
    pixels = augment(images, params, size=3, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal((pixels[0] * 255).round(), images.movedim(-1, 1).float())


def test_a_batch_equals_its_images_one_by_one():
    images = torch.stack([smooth_noise(150, 140, seed) for seed in range(6)])
    params = sample_view_params(POLICIES["imagenet128"], [(150, 140)] * 6, generator=seeded())
    together = augment(images, params, size=64, **HALF)
    for index in range(6):
        alone = augment(images[index : index + 1], params[index], size=64, **HALF)
        assert torch.equal(together[:, index : index + 1], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_output_type_and_memory_format(dtype, channels_last):
    images = torch.stack([white_noise(20, 20, seed) for seed in range(3)])
    params = sample_view_params(POLICIES["digits"], [(20, 20)] * 3, generator=seeded())
    exact = augment(images, params, size=8, **HALF)
    result = augment(images, params, size=8, dtype=dtype, channels_last=channels_last, **HALF)
    assert result.shape == (2, 3, 3, 8, 8)
    assert torch.equal(result, exact.to(dtype))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for view in result:
        assert view.is_contiguous(memory_format=layout)


def test_normalize_equals_torchvision_on_every_level():
    levels = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(-1, -1, 3)
    for policy in POLICIES.values():
        ours = reference.normalize(levels, policy.mean, policy.std)
        picture = to_pillow(levels)
        theirs = transforms.Normalize(policy.mean, policy.std)(transforms.ToTensor()(picture))
        assert torch.equal(ours, theirs)


def test_two_views_samples_and_applies():
    images = torch.stack([smooth_noise(96, 96, seed) for seed in range(4)])
    policy = POLICIES["stl10"]
    module = TwoViews("stl10")
    views = module(images, generator=seeded(7))
    assert views.shape == (2, 4, 3, 64, 64)
    params = sample_view_params(policy, [(96, 96)] * 4, generator=seeded(7))
    assert torch.equal(views, augment(images, params, size=64, mean=policy.mean, std=policy.std))
    assert not torch.equal(views[0], views[1])
    index = torch.tensor([2, 0])
    part = TwoViews(policy)(list(images[index]), generator=seeded(7), sample_index=index)
    assert torch.equal(part, views[:, index])
    assert "size=64" in repr(module)
    half = TwoViews(policy, dtype=torch.bfloat16, channels_last=True)
    assert torch.equal(half(images, generator=seeded(7)), views.bfloat16())


@pytest.mark.parametrize(
    "images",
    [
        torch.empty(0, 32, 40, 3, dtype=torch.uint8),
        torch.empty(0, 3, 32, 40, dtype=torch.uint8),
        [],
    ],
)
def test_empty_batch_gives_an_empty_batch(images):
    for name, policy in POLICIES.items():
        assert TwoViews(name)(images).shape == (2, 0, 3, policy.size, policy.size)
    assert center_view(images, resize=20, size=16, **HALF).shape == (0, 3, 16, 16)


def test_empty_batch_as_it_is():
    for images in ([], torch.empty(0, 16, 16, 3, dtype=torch.uint8)):
        assert center_view(images, resize=None, size=16, **HALF).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(("resize", "size"), [(70, 64), (146, 128), (33, 32), (32, 32)])
def test_center_view_equals_torchvision(resize, size):
    pipeline = transforms.Compose(
        [
            transforms.Resize(resize, InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(**HALF),
        ]
    )
    extents = [(96, 96), (180, 240), (241, 97), (70, 70), (146, 146), (20, 31), (333, 32)]
    images = [make(*extent) for extent in extents for make in (white_noise, smooth_noise)]
    expected = torch.stack([pipeline(to_pillow(image)) for image in images])
    assert torch.equal(center_view(images, resize=resize, size=size, **HALF), expected)
    batch = torch.stack(images[2:4])
    assert torch.equal(center_view(batch, resize=resize, size=size, **HALF), expected[2:4])


def test_center_view_takes_images_as_they_are():
    images = torch.stack([white_noise(32, 32, seed) for seed in range(3)])
    expected = torch.stack([tv.normalize(tv.to_tensor(to_pillow(i)), **HALF) for i in images])
    for same in (images, images.movedim(-1, 1), list(images)):
        assert torch.equal(center_view(same, resize=None, size=32, **HALF), expected)
    with pytest.raises(ValueError, match=r"images must be 28 x 28 .*, got 32 x 32 at 0"):
        center_view(images, resize=None, size=28, **HALF)
    with pytest.raises(ValueError, match="resize must be at least size = 32, got 31"):
        center_view(images, resize=31, size=32, **HALF)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(2, 8, 8, 3)}, TypeError, "images must be uint8, got torch.float32"),
        (
            {"images": torch.zeros(2, 8, 8, 4, dtype=torch.uint8)},
            ValueError,
            r"images must be \[N, H, W, 3\].*, got \[2, 8, 8, 4\]",
        ),
        (
            {"images": [white_noise(8, 8), white_noise(8, 8).movedim(-1, 0)]},
            ValueError,
            r"images\[1\] must be \[H, W, 3\], got \[3, 8, 8\]",
        ),
        (
            {"images": [white_noise(8, 8), white_noise(8, 8).int()]},
            TypeError,
            r"images\[1\] must be uint8, got torch.int32",
        ),
        (
            {"images": [white_noise(8, 8), Image.new("RGB", (8, 8))]},
            TypeError,
            r"images\[1\] must be a uint8 tensor, got Image",
        ),
        (
            {"images": [white_noise(8, 8), white_noise(8, 8).to("meta")]},
            ValueError,
            r"images\[1\] must be on the device of images\[0\], cpu, got meta",
        ),
        (
            {"images": [white_noise(8, 8), white_noise(8, 7)]},
            ValueError,
            r"params.crop\[0, 1\] must be .* inside its image of 8 x 7 pixels, got \[0, 0, 8, 8\]",
        ),
        ({"params": plain([(8, 8)])}, ValueError, "params must describe 2 images, got 1"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"mean": (0.5,)}, ValueError, "mean and std must have three values each"),
        ({"std": (0.5, 0.5, 0.0)}, ValueError, "std must be positive"),
        ({"dtype": torch.int8}, TypeError, "dtype must be float32, float16 or bfloat16, got"),
    ],
)
def test_augment_rejects(change, error, message):
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    arguments = {"images": images, "params": plain([(8, 8)] * 2), "size": 8, **HALF, **change}
    with pytest.raises(error, match=message):
        augment(arguments.pop("images"), arguments.pop("params"), **arguments)


def test_two_views_rejects_an_unknown_policy():
    with pytest.raises(ValueError, match=r"policy must be one of digits, cifar, .*, got 'mnist'"):
        TwoViews("mnist")
