"""Images of channels other than three: each channel is a gray image of Pillow's."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from amdim_fast.views.augment import augment
from amdim_fast.views.params import POLICIES
from amdim_fast.views.preprocessing import Preprocessing, center_view
from amdim_fast.views.sampling import sample_view_params
from amdim_fast.views.two_views import TwoViews
from tests.views.cases import seeded, smooth_noise, white_noise
from tests.views.test_augment import pillow_view

SIZE = 12
MEAN, STD = (0.1, 0.5, 0.7, 0.2, 0.9), (0.2, 0.5, 1.0, 0.3, 0.7)
POLICY = replace(
    POLICIES["cifar"], size=SIZE, scale=(0.3, 1.0), gray_probability=0.4, hue=0.5, contrast=0.9
)


def pictures(channels, count=12, sizes=((17, 23),)):
    """uint8 [H, W, C] images whose channels differ."""
    found = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        kinds = (smooth_noise, white_noise)
        planes = [
            kinds[(index + channel) % 2](height, width, seed=31 * index + channel)[..., :1]
            for channel in range(channels)
        ]
        found.append(torch.cat(planes, -1))
    return found


def expected_views(images, params, mean, std):
    """[V, N, C, ...]: views as torchvision makes them of each channel as a gray Pillow image."""

    def of_image(view, index):
        planes = images[index].unbind(-1)
        made = [
            gray_view(plane, params, view, index, *scaling)
            for plane, *scaling in zip(planes, mean, std, strict=True)
        ]
        return torch.cat(made)

    views = [
        torch.stack([of_image(view, index) for index in range(len(images))])
        for view in range(params.views)
    ]
    return torch.stack(views)


def gray_view(plane, params, view, index, mean, std):
    made = pillow_view(plane, params, view, index, SIZE)
    made = made.convert("L") if made.mode != "L" else made
    return tv.normalize(tv.to_tensor(made), [mean], [std])


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_each_channel_is_a_gray_image_of_pillows(channels, backend):
    images = pictures(channels)
    params = sample_view_params(POLICY, [(17, 23)] * len(images), generator=seeded(channels))
    mean, std = MEAN[:channels], STD[:channels]
    expected = expected_views(images, params, mean, std)
    assert params.jitter.any()
    assert params.gray.any()
    assert params.flip.any()
    for given in (torch.stack(images), torch.stack(images).movedim(-1, 1), images):
        made = augment(given, params, size=SIZE, mean=mean, std=std, backend=backend)
        assert made.shape == (2, len(images), channels, SIZE, SIZE)
        assert made.is_contiguous()
        assert torch.equal(made, expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_several_sizes_in_channels_last_and_half_precision(channels):
    images = pictures(channels, sizes=((9, 30), (14, 13), (40, 11)))
    sizes = [image.shape[:2] for image in images]
    params = sample_view_params(POLICY, sizes, generator=seeded(5))
    mean, std = MEAN[:channels], STD[:channels]
    made = augment(
        images, params, size=SIZE, mean=mean, std=std, dtype=torch.bfloat16, channels_last=True
    )
    assert torch.equal(made, expected_views(images, params, mean, std).bfloat16())
    assert made[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("channels", [1, 4])
def test_two_views_draw_what_they_draw_of_color_images(channels, backend):
    policy = POLICY.adapted(channels=channels)
    images = torch.stack(pictures(channels))
    two = TwoViews(policy, backend=backend)
    index = torch.arange(7, 7 + len(images))
    made = two(images, generator=seeded(3), sample_index=index)
    params = sample_view_params(
        POLICY, [(17, 23)] * len(images), generator=seeded(3), sample_index=index
    )
    assert torch.equal(made, expected_views(images, params, policy.mean, policy.std))
    assert torch.equal(two(list(images), generator=seeded(3), sample_index=index), made)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_center_view_is_torchvisions(channels, backend):
    images = pictures(channels, count=3, sizes=((17, 23), (30, 19), (12, 12)))
    mean, std = MEAN[:channels], STD[:channels]
    made = center_view(images, resize=15, size=SIZE, mean=mean, std=std, backend=backend)
    for image, view in zip(images, made, strict=True):
        planes = []
        for channel in range(channels):
            gray = Image.fromarray(image[..., channel].contiguous().numpy())
            gray = tv.center_crop(tv.resize(gray, 15, InterpolationMode.BICUBIC), [SIZE, SIZE])
            planes.append(tv.normalize(tv.to_tensor(gray), [mean[channel]], [std[channel]]))
        assert torch.equal(view, torch.cat(planes))
    assert torch.equal(Preprocessing(SIZE, mean, std, 15)(images[0]), made[0])


def test_pillow_images_take_the_mode_of_the_channels():
    color = Image.fromarray(white_noise(20, 20).numpy())
    alpha = color.convert("RGBA")
    alpha.putalpha(Image.fromarray(white_noise(20, 20, seed=1)[..., 0].contiguous().numpy()))
    normal = {"resize": None, "size": 20}
    gray = center_view(color, mean=(0.0,), std=(1.0,), **normal)
    assert torch.equal(gray, tv.to_tensor(color.convert("L")))
    four = center_view(alpha, mean=(0.0,) * 4, std=(1.0,) * 4, **normal)
    assert torch.equal(four, tv.to_tensor(alpha))
    opaque = center_view(color, mean=(0.0,) * 4, std=(1.0,) * 4, **normal)
    assert torch.equal(opaque[3], torch.ones(20, 20))
    assert torch.equal(opaque[:3], four[:3])
    with pytest.raises(
        ValueError, match="images is a Pillow image, and they have 1, 3, 4 channels, not 2; give"
    ):
        center_view(color, mean=(0.0,) * 2, std=(1.0,) * 2, **normal)


def test_an_adapted_policy_keeps_what_it_draws():
    policy = POLICIES["imagenet128"].adapted(size=224, channels=2)
    assert (policy.size, policy.test_resize, policy.channels) == (224, 256, 2)
    assert policy.mean == (0.449,) * 2
    assert policy.std == ((0.229 + 0.224 + 0.225) / 3,) * 2
    changed = {"size", "test_resize", "mean", "std"}
    assert all(
        getattr(policy, name) == value
        for name, value in vars(POLICIES["imagenet128"]).items()
        if name not in changed
    )
    assert POLICIES["cifar"].adapted(size=64).test_resize is None
    assert POLICIES["stl10"].adapted(size=64, channels=3) == POLICIES["stl10"]


def test_channels_that_do_not_fit_are_named():
    images = torch.stack(pictures(2, count=2))
    params = sample_view_params(POLICY, [(17, 23)] * 2)
    call = {"size": SIZE, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ValueError, match=r"images is \[2, 17, 23, 2\]; it must be \[N, H, W, 3\]"):
        augment(images, params, **call)
    with pytest.raises(ValueError, match=r"it must be \[N, H, W, 4\], \[N, 4, H, W\] or a list"):
        augment(images, params, size=SIZE, mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(ValueError, match=r"images\[0\] is \[17, 23, 2\]; it must be \[H, W, 1\]"):
        TwoViews(POLICY.adapted(channels=1))(list(images))
    with pytest.raises(ValueError, match="both must have one number a channel"):
        augment(images, params, size=SIZE, mean=(0.5,) * 2, std=(0.5,))
    for name, value in (("mean", ()), ("std", (0.5, 0.5)), ("mean", 0.5)):
        with pytest.raises(ValueError, match=f"{name} is .*; mean and std must have a number for"):
            replace(POLICY, **{name: value})
    for name, value in (("channels", 0), ("channels", 1.5), ("size", "64")):
        with pytest.raises(
            ValueError, match=f"{name} is {value!r}; it must be a whole number, 1 or"
        ):
            POLICY.adapted(**{name: value})
    with pytest.raises(
        ValueError, match=r"images\[1\] has floating-point pixels, of unknown range"
    ):
        TwoViews(POLICY)([Image.new("RGB", (20, 20)), Image.new("F", (20, 20))])
    with pytest.raises(ValueError, match="both must have one number a channel"):
        Preprocessing(SIZE, (0.5,), (0.5, 0.5), None)


def test_gray_arrays_need_no_channel():
    policy = POLICY.adapted(channels=1)
    images = torch.stack(pictures(1, count=3))
    two = TwoViews(policy)
    expected = two(images, generator=seeded())
    for given in (images[..., 0], images[..., 0].numpy(), list(images[..., 0].numpy())):
        assert torch.equal(two(given, generator=seeded()), expected)
    single = two(images[0], generator=seeded())
    assert single.shape == (2, 1, SIZE, SIZE)
    for given in (images[0, ..., 0], images[0].movedim(-1, 0), images[0, ..., 0].numpy()):
        assert torch.equal(two(given, generator=seeded()), single)
