"""The compiled augmentation against its reference, bit for bit."""

import itertools
from dataclasses import replace

import pytest
import torch

from amdim_fast.views.augment import augment
from amdim_fast.views.preprocessing import center_view
from tests.threads import torch_threads
from tests.views.cases import HALF, any_params, plain, seeded, smooth_noise, white_noise

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OUTPUTS = (1, 3, 8, 17, 33, 64, 65, 130)


def assert_equal_backends(images, params, size, **options):
    expected = augment(images, params, size=size, backend="reference", **options, **HALF)
    found = augment(images, params, size=size, backend="compiled", **options, **HALF)
    assert found.stride() == expected.stride()
    assert torch.equal(found, expected)


def pictures(sizes, seed=0):
    makers = (white_noise, smooth_noise)
    return [makers[i % 2](*size, seed + i) for i, size in enumerate(sizes)]


@pytest.fixture(params=[1, 2])
def threads(request):
    with torch_threads(request.param):
        yield


def layouts(images):
    """The same batch [N, H, W, 3] in other strides."""
    count, height, width, _ = images.shape
    sliced = torch.zeros(2 * count, height + 3, 2 * width, 4, dtype=torch.uint8)
    sliced = sliced[::2, 1 : height + 1, ::2, :3].copy_(images)
    transposed = images.transpose(1, 2).contiguous().transpose(1, 2)
    return [images, images.movedim(-1, 1).contiguous().movedim(1, -1), sliced, transposed]


@pytest.mark.parametrize("seed", range(300))
def test_batches_of_any_size_and_layout(seed):
    generator = seeded(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    long, short = draw(1, 90), draw(1, 12 if seed % 5 == 0 else 90)
    extent = (long, short) if seed % 2 else (short, long)
    images = layouts(torch.stack(pictures([extent] * draw(1, 6), seed)))[seed % 4]
    params = any_params([extent] * len(images), 1 + seed % 3, seed)
    dtype = DTYPES[seed % 3]
    size = OUTPUTS[draw(0, len(OUTPUTS))]
    assert_equal_backends(images, params, size, dtype=dtype, channels_last=seed % 4 < 2)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", OUTPUTS)
def test_lists_of_different_sizes(size):
    sizes = [(1, 1), (1, 90), (70, 1), (2, 3), (64, 64), (31, 100), (size, size), (130, 33)]
    images = pictures(sizes, size)
    images[4] = images[4].transpose(0, 1)
    images[7] = white_noise(260, 66)[::2, ::2]
    assert_equal_backends(images, any_params(sizes, 3, size), size)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_and_memory_formats(dtype, channels_last):
    images = torch.stack(pictures([(40, 53)] * 9))
    params = any_params([(40, 53)] * 9, 2, seed=1)
    assert_equal_backends(images, params, 33, dtype=dtype, channels_last=channels_last)


def test_every_order():
    orders = torch.tensor([*itertools.permutations(range(4))], dtype=torch.int32)[None]
    sizes = [(24, 31)] * 24
    params = any_params(sizes, 1, seed=2)
    params = replace(params, order=orders, jitter=~torch.zeros_like(params.jitter))
    assert_equal_backends(torch.stack(pictures(sizes)), params, 19)


@pytest.mark.parametrize(
    ("extent", "size"),
    [
        ((700, 500), 8),
        ((500, 700), 1),
        ((8, 3000), 17),
        ((3000, 8), 3),
        ((1000, 1), 33),
        ((3, 2), 200),
    ],
)
def test_extreme_scales(extent, size):
    images = pictures([extent] * 2)
    whole = plain([extent] * 2)
    flipped = replace(whole, flip=~whole.flip)
    for params in (whole, flipped, any_params([extent] * 2, 2)):
        assert_equal_backends(images, params, size)


@pytest.mark.parametrize("expanded", [(0,), (1,), (2,), (3,), (0, 1, 2)])
def test_expanded_images(expanded):
    shape = [1 if axis in expanded else n for axis, n in enumerate((4, 21, 30, 3))]
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded()).expand(
        4, 21, 30, 3
    )
    assert_equal_backends(images, any_params([(21, 30)] * 4), 17)


def test_one_pixel_crops_and_identity():
    images = torch.stack(pictures([(20, 20)] * 6))
    base = plain([(20, 20)] * 6)
    assert_equal_backends(images, base, 20)
    corners = torch.tensor([(y, x, 1, 1) for y in (0, 10, 19) for x in (0, 19)], dtype=torch.int32)
    assert_equal_backends(images, replace(base, crop=corners[None]), 9)
    assert_equal_backends(images, replace(base, crop=corners[None]), 1)


def test_largest_factors():
    images = torch.stack(pictures([(9, 9)] * 4))
    base = plain([(9, 9)] * 4)
    for name in ("brightness", "contrast", "saturation"):
        for factor in (1e29, 1e35, torch.finfo(torch.float32).max):
            large = torch.full_like(base.hue, factor)
            params = replace(base, jitter=~base.jitter, **{name: large})
            assert_equal_backends(images, params, 9)


def test_parameters_and_images_need_not_be_contiguous():
    images = torch.stack(pictures([(20, 30)] * 8))
    params = any_params([(20, 30)] * 8, 2)[::2]
    assert not params.crop.is_contiguous()
    assert_equal_backends(images[::2], params, 13)


@pytest.mark.usefixtures("threads")
def test_a_batch_equals_its_images_one_by_one():
    sizes = [(30, 40), (50, 20), (7, 7)]
    images, params = pictures(sizes), any_params(sizes)
    together = augment(images, params, size=17, **HALF)
    for index in range(3):
        alone = augment(images[index][None], params[index], size=17, **HALF)
        assert torch.equal(together[:, index], alone[:, 0])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("resize", "size"), [(70, 64), (33, 32), (32, 32), (17, 3), (1, 1), (200, 130)]
)
def test_center_view(resize, size, channels_last):
    images = pictures([(96, 96), (41, 97), (70, 31), (20, 31), (1, 9), (333, 64)])
    batch = torch.stack(pictures([(45, 60)] * 3))
    for pixels, dtype in ((images, torch.float32), (batch, torch.bfloat16)):
        options = {"resize": resize, "size": size, "dtype": dtype, "channels_last": channels_last}
        found, expected = (
            center_view(pixels, backend=backend, **options, **HALF)
            for backend in ("compiled", "reference")
        )
        assert torch.equal(found, expected)


def test_center_view_of_images_as_they_are():
    images = pictures([(16, 16)] * 3)
    for pixels in (images, torch.stack(images)):
        found, expected = (
            center_view(pixels, resize=None, size=16, backend=backend, **HALF)
            for backend in ("compiled", "reference")
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "name",
    ["crop", "translate", "flip", "order", "brightness", "contrast", "saturation", "hue", "gray"],
)
def test_the_comparison_sees_one_changed_field(name):
    images = torch.stack(pictures([(40, 40)] * 2))
    base = any_params([(40, 40)] * 2, 1, seed=3)
    base = replace(
        base,
        crop=torch.tensor([4, 4, 30, 30], dtype=torch.int32).expand(1, 2, 4),
        translate=torch.ones(1, 2, 2, dtype=torch.int32),
        jitter=torch.ones(1, 2, dtype=torch.bool),
        order=torch.arange(4, dtype=torch.int32).expand(1, 2, 4),
        gray=torch.zeros(1, 2, dtype=torch.bool),
        **{factor: torch.full((1, 2), 0.7) for factor in ("brightness", "contrast", "saturation")},
        hue=torch.full((1, 2), 0.1),
    )
    value = getattr(base, name)
    changed = (
        ~value if value.dtype == torch.bool else value + (0.02 if value.is_floating_point() else 1)
    )
    if name == "order":
        changed = value.flip(-1)
    before = augment(images, base, size=24, **HALF)
    after = augment(images, replace(base, **{name: changed}), size=24, **HALF)
    for index in range(2):
        assert not torch.equal(before[0, index], after[0, index])
