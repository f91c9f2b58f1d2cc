import math

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from amdim_fast.views import reference
from amdim_fast.views.augment import augment
from amdim_fast.views.params import POLICIES
from amdim_fast.views.preprocessing import center_view
from amdim_fast.views.sampling import sample_view_params
from amdim_fast.views.two_views import TwoViews
from tests.data.image_files import to_pillow
from tests.views.cases import HALF, plain, seeded, smooth_noise, white_noise


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


@pytest.mark.parametrize(("resize", "size"), [(70, 64), (146, 128), (33, 32), (32, 32), (None, 28)])
def test_center_view_equals_torchvision(resize, size):
    pipeline = transforms.Compose(
        [
            transforms.Resize(resize or size, InterpolationMode.BICUBIC),
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
    with pytest.raises(ValueError, match="resize is 31; it must be at least size = 32"):
        center_view(images, resize=31, size=32, **HALF)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"images": torch.zeros(2, 8, 8, 3)},
            TypeError,
            "images is torch.float32; it must be torch.uint8",
        ),
        (
            {"images": torch.zeros(2, 8, 8, 4, dtype=torch.uint8)},
            ValueError,
            r"images is \[2, 8, 8, 4\]; it must be \[N, H, W, 3\]",
        ),
        (
            {"images": [white_noise(8, 8), white_noise(8, 8).movedim(-1, 0)]},
            ValueError,
            r"images\[1\] is \[3, 8, 8\]; it must be \[H, W, 3\]",
        ),
        (
            {"images": [white_noise(8, 8), white_noise(8, 8).int()]},
            TypeError,
            r"images\[1\] is torch.int32; it must be torch.uint8",
        ),
        (
            {"images": [white_noise(8, 8), Image.new("RGB", (8, 8))]},
            TypeError,
            r"images\[1\] is of type Image; it must be a uint8 tensor",
        ),
        (
            {"images": [white_noise(8, 8), white_noise(8, 8).to("meta")]},
            ValueError,
            r"images\[1\] is on meta; it must be on the device of images\[0\], cpu",
        ),
        (
            {"images": [white_noise(8, 8), white_noise(8, 7)]},
            ValueError,
            r"params.crop\[0, 1\] is \[0, 0, 8, 8\]; it must be .* inside its image of 8 x 7",
        ),
        ({"params": plain([(8, 8)])}, ValueError, r"len\(params\) is 1; it must be 2"),
        ({"images": None}, TypeError, "images is of type NoneType; it must be a uint8 tensor"),
        ({"images": 3}, TypeError, "images is of type int; it must be a uint8 tensor"),
        ({"params": None}, TypeError, "params is of type NoneType; it must be a ViewParams"),
        (
            {"images": torch.zeros(2, 0, 8, 3, dtype=torch.uint8)},
            ValueError,
            r"min\(sizes\) is 0; it must be at least 1 pixel",
        ),
        ({"size": 0}, ValueError, "size is 0; it must be a whole number from 1 to 8192"),
        (
            {"size": 2**31},
            ValueError,
            "size is 2147483648; it must be a whole number from 1 to 8192",
        ),
        ({"size": "8"}, ValueError, "size is '8'; it must be a whole number"),
        ({"mean": None}, ValueError, "mean is None; it must be a finite number for each channel"),
        (
            {"mean": ("a", "b", "c")},
            ValueError,
            r"mean is \('a', 'b', 'c'\); it must be a finite num",
        ),
        (
            {"mean": (0, 0, math.nan)},
            ValueError,
            r"mean is \(0, 0, nan\); it must be a finite number",
        ),
        ({"std": (1, math.inf, 1)}, ValueError, r"std is \(1, inf, 1\); it must be a finite"),
        ({"mean": (0.5,)}, ValueError, r"mean is \(0.5,\) and std .*; both must have one"),
        ({"std": (0.5, 0.5, 0.0)}, ValueError, r"std is \(0.5, 0.5, 0.0\); it must be positive"),
        (
            {"dtype": torch.int8},
            TypeError,
            "dtype is torch.int8; it must be float32, float16 or bfloat16",
        ),
    ],
)
def test_augment_rejects(change, error, message):
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    arguments = {"images": images, "params": plain([(8, 8)] * 2), "size": 8, **HALF, **change}
    with pytest.raises(error, match=message):
        augment(arguments.pop("images"), arguments.pop("params"), **arguments)


def test_two_views_rejects_an_unknown_policy():
    with pytest.raises(ValueError, match="policy is 'mnist'; it must be one of digits, cifar, "):
        TwoViews("mnist")
    with pytest.raises(TypeError, match="policy is None; it must be a ViewPolicy"):
        TwoViews(None)
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"sample_index is of type list; it must be int64 \[2\]"):
        TwoViews("cifar")(images, sample_index=[0, 1])
    with pytest.raises(TypeError, match="generator is of type int; it must be a generator"):
        TwoViews("cifar")(images, generator=3)
    with pytest.raises(ValueError, match=r"min\(sizes\) is 0; it must be at least 1 pixel"):
        TwoViews("cifar")(images[:, :0])
