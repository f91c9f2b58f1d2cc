import math
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from amdim_fast.augmentation import sample_view_params
from amdim_fast.reference.philox import philox
from amdim_fast.views import POLICIES, ViewParams, ViewPolicy

COUNT = 20_000
# Critical values at a probability of about 1e-4; seeds are fixed, so no run differs from another.
KS_LIMIT = 2.2
CHI_SQUARE_SIGMAS = 4.0


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(policy, sizes, seed=0, **options):
    policy = POLICIES[policy] if isinstance(policy, str) else policy
    return sample_view_params(policy, sizes, generator=seeded(seed), **options)


def same(left, right):
    return all(torch.equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))


def plain_params(images=3, views=2, height=8, width=6):
    lead = (views, images)
    one = torch.ones(lead)
    no = torch.zeros(lead, dtype=torch.bool)
    return ViewParams(
        crop=torch.tensor([0, 0, height, width], dtype=torch.int32).repeat(*lead, 1),
        translate=torch.zeros(*lead, 2, dtype=torch.int32),
        flip=no,
        jitter=no,
        order=torch.arange(4, dtype=torch.int32).repeat(*lead, 1),
        brightness=one,
        contrast=one,
        saturation=one,
        hue=one * 0,
        gray=no,
    )


def ks_distance(left, right):
    """Kolmogorov-Smirnov statistic of two samples in units of its asymptotic scale."""
    left, right = left.double().sort().values, right.double().sort().values
    both = torch.cat([left, right])
    left_cdf = torch.searchsorted(left, both, right=True) / len(left)
    right_cdf = torch.searchsorted(right, both, right=True) / len(right)
    scale = math.sqrt(len(left) * len(right) / (len(left) + len(right)))
    return (left_cdf - right_cdf).abs().max().item() * scale


def chi_square_sigmas(labels, categories):
    """Standard deviations between the chi-square of uniform counts and its mean."""
    counts = torch.bincount(labels, minlength=categories).double()
    expected = len(labels) / categories
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return (statistic - (categories - 1)) / math.sqrt(2 * (categories - 1))


def uniform_grid(low, high):
    return torch.linspace(low, high, 10 * COUNT, dtype=torch.float64)


# Known answers published with Random123 (Salmon et al. 2011).
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, answer):
    words = philox([torch.tensor([word]) for word in counter], key)
    assert words.tolist() == [answer]


def test_fields_have_the_documented_types_and_shapes():
    params = draw("stl10", [(96, 96)] * 5, views=3)
    assert (params.views, len(params)) == (3, 5)
    for name, dtype, trailing in [
        ("crop", torch.int32, (4,)),
        ("translate", torch.int32, (2,)),
        ("flip", torch.bool, ()),
        ("jitter", torch.bool, ()),
        ("order", torch.int32, (4,)),
        ("brightness", torch.float32, ()),
        ("contrast", torch.float32, ()),
        ("saturation", torch.float32, ()),
        ("hue", torch.float32, ()),
        ("gray", torch.bool, ()),
    ]:
        value = getattr(params, name)
        assert value.dtype == dtype, name
        assert value.shape == (3, 5, *trailing), name


def test_generator_decides_everything_and_advances_by_one_seed():
    sizes = [(96, 80)] * 7
    assert same(draw("stl10", sizes, 3), draw("stl10", sizes, 3))
    assert not same(draw("stl10", sizes, 3), draw("stl10", sizes, 4))
    generator = seeded(3)
    first = sample_view_params(POLICIES["stl10"], sizes, generator=generator)
    second = sample_view_params(POLICIES["stl10"], sizes, generator=generator)
    assert same(first, draw("stl10", sizes, 3))
    assert not same(first, second)
    other = seeded(3)
    sample_view_params(POLICIES["cifar"], [(32, 32)] * 2, views=5, generator=other)
    assert same(second, sample_view_params(POLICIES["stl10"], sizes, generator=other))


def test_default_generator_is_honoured():
    state = torch.get_rng_state()
    torch.manual_seed(9)
    first = sample_view_params(POLICIES["digits"], [(32, 32)] * 4)
    torch.manual_seed(9)
    assert same(first, sample_view_params(POLICIES["digits"], [(32, 32)] * 4))
    torch.set_rng_state(state)


def test_parameters_of_a_sample_do_not_depend_on_its_batch_or_the_number_of_views():
    index = torch.tensor([5, 2**40 + 1, 0, 17])
    sizes = torch.tensor([[96, 96], [50, 70], [256, 640], [33, 32]])
    whole = draw("imagenet128", sizes, sample_index=index)
    chosen = torch.tensor([3, 1])
    part = draw("imagenet128", sizes[chosen], sample_index=index[chosen])
    assert same(whole[chosen], part)
    one = draw("imagenet128", sizes, sample_index=index, views=1)
    for f in fields(whole):
        assert torch.equal(getattr(whole, f.name)[:1], getattr(one, f.name))
    assert not torch.equal(whole.hue[:, 0], whole.hue[:, 2])
    assert not torch.equal(whole.hue[0], whole.hue[1])


def test_an_option_changes_only_its_own_field():
    sizes = [(96, 96)] * 50
    base = POLICIES["stl10"]
    changes = {
        "crop": {"scale": None},
        "translate": {"max_translation": 9, "translate_probability": 1.0},
        "flip": {"flip_probability": 0.0},
        "jitter": {"jitter_probability": 0.0},
        "brightness": {"brightness": 0.1},
        "contrast": {"contrast": 0.1},
        "saturation": {"saturation": 0.1},
        "hue": {"hue": 0.05},
        "gray": {"gray_probability": 1.0},
    }
    before = draw(base, sizes)
    for changed, options in changes.items():
        after = draw(replace(base, **options), sizes)
        for f in fields(before):
            equal = torch.equal(getattr(before, f.name), getattr(after, f.name))
            assert equal == (f.name != changed), (changed, f.name)


def test_flip_is_shared_by_the_views_of_an_image():
    params = draw("stl10", [(96, 96)] * COUNT)
    assert torch.equal(params.flip[0], params.flip[1])
    assert not torch.equal(params.jitter[0], params.jitter[1])
    assert not draw("digits", [(32, 32)] * 1000).flip.any()


@pytest.mark.parametrize(
    ("field", "policy", "probability"),
    [("flip", "stl10", 0.5), ("jitter", "cifar", 0.8), ("gray", "imagenet128", 0.25)],
)
def test_chances(field, policy, probability):
    params = draw(policy, [(64, 64)] * COUNT)
    for view in getattr(params, field):
        sigma = math.sqrt(probability * (1 - probability) / COUNT)
        assert abs(view.double().mean().item() - probability) < 4 * sigma


def test_jitter_factors_are_uniform():
    policy = replace(POLICIES["imagenet128"], brightness=0.4, contrast=1.5, saturation=0.05)
    params = draw(policy, [(64, 64)] * COUNT)
    bounds = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.05, "hue": 0.1}
    for name, amount in bounds.items():
        low, high = (-amount, amount) if name == "hue" else (max(0, 1 - amount), 1 + amount)
        for view in getattr(params, name):
            assert low - 1e-6 <= view.min()
            assert view.max() <= high + 1e-6
            assert ks_distance(view, uniform_grid(low, high)) < KS_LIMIT
    shifted = uniform_grid(-0.1, 0.104)
    assert ks_distance(params.hue.flatten(), shifted) > KS_LIMIT


def test_orders_are_uniform_permutations():
    params = draw("stl10", [(64, 64)] * COUNT)
    for view in params.order:
        assert torch.equal(view.sort(-1).values, torch.arange(4).int().expand(COUNT, 4))
        _, labels = (view @ torch.tensor([64, 16, 4, 1], dtype=torch.int32)).unique(
            return_inverse=True
        )
        assert labels.max() == 23
        assert chi_square_sigmas(labels, 24) < CHI_SQUARE_SIGMAS


def test_translations_are_uniform_over_81_offsets():
    policy = replace(POLICIES["cifar"], translate_probability=1.0)
    offsets = draw(policy, [(32, 32)] * COUNT).translate.long().flatten(0, 1)
    assert offsets.abs().max() == 4
    labels = (offsets[:, 0] + 4) * 9 + offsets[:, 1] + 4
    assert chi_square_sigmas(labels, 81) < CHI_SQUARE_SIGMAS
    still = (draw("cifar", [(32, 32)] * COUNT).translate == 0).all(-1).double().mean().item()
    assert abs(still - (0.2 + 0.8 / 81)) < 0.01
    assert not draw("stl10", [(32, 32)] * 100).translate.any()


def test_quantities_and_views_are_uncorrelated():
    params = draw("stl10", [(200, 200)] * COUNT)
    names = ("flip", "jitter", "brightness", "contrast", "saturation", "hue", "gray")
    rows = [getattr(params, name)[0].double() for name in names]
    rows += [getattr(params, name)[1].double() for name in names[1:]]
    rows += [params.crop[0, :, 0].double(), params.crop[1, :, 1].double()]
    rows += [params.order[0, :, 0].double(), params.order[1, :, 3].double()]
    correlation = torch.corrcoef(torch.stack(rows)).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(COUNT)


def torchvision_crops(size, count, scale, ratio):
    state = torch.get_rng_state()
    torch.manual_seed(1)
    image = torch.empty(3, 1, 1).expand(3, *size)
    crops = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)]
    torch.set_rng_state(state)
    return torch.tensor(crops)


@pytest.mark.parametrize("size", [(96, 96), (180, 240), (256, 640), (500, 90)])
def test_crops_are_distributed_as_torchvisions(size):
    policy = POLICIES["stl10"]
    ours = draw(policy, [size] * COUNT).crop[1]
    theirs = torchvision_crops(size, 4000, list(policy.scale), list(policy.ratio))
    functions = {
        "top": lambda crop: crop[:, 0],
        "left": lambda crop: crop[:, 1],
        "height": lambda crop: crop[:, 2],
        "width": lambda crop: crop[:, 3],
        "ratio": lambda crop: crop[:, 3] / crop[:, 2],
        "right": lambda crop: size[1] - crop[:, 1] - crop[:, 3],
        "area": lambda crop: crop[:, 2] * crop[:, 3],
    }
    for name, function in functions.items():
        assert ks_distance(function(ours), function(theirs)) < KS_LIMIT, name


def test_the_crop_check_sees_a_slightly_wrong_rule():
    theirs = torchvision_crops((96, 96), 4000, [0.3, 1.0], [0.7, 1.4])
    wrong_scale = draw(replace(POLICIES["stl10"], scale=(0.35, 1.0)), [(96, 96)] * COUNT).crop[0]
    wrong_ratio = draw(replace(POLICIES["stl10"], ratio=(0.75, 1.4)), [(96, 96)] * COUNT).crop[0]
    assert ks_distance(wrong_scale[:, 2], theirs[:, 2]) > KS_LIMIT
    assert ks_distance(wrong_ratio[:, 3], theirs[:, 3]) > KS_LIMIT


def test_fallback_crop_takes_a_fifth_of_wide_images():
    crop = draw("imagenet128", [(256, 640)] * COUNT).crop[0]
    fallback = torch.tensor([0, (640 - 358) // 2, 256, 358], dtype=torch.int32)
    share = (crop == fallback).all(-1).double().mean().item()
    assert 0.18 < share < 0.22


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 2), (7, 1000), (640, 256)])
def test_fallback_and_crops_equal_torchvision_where_no_try_fits(size):
    policy = replace(POLICIES["stl10"], scale=(1.0, 1.0), ratio=(0.7, 1.4))
    ours = draw(policy, [size] * 500)
    ours.validate([size] * 500)
    theirs = torchvision_crops(size, 500, [1.0, 1.0], [0.7, 1.4])
    assert set(map(tuple, ours.crop[0].tolist())) == set(map(tuple, theirs.tolist()))


def test_every_crop_lies_inside_its_image():
    sizes = torch.randint(9, 700, (COUNT, 2), generator=seeded())
    for policy in (*POLICIES.values(), replace(POLICIES["stl10"], ratio=(0.05, 30.0))):
        draw(policy, sizes).validate(sizes)
    whole = draw("cifar", sizes).crop[0].long()
    assert torch.equal(whole, torch.cat([torch.zeros_like(sizes), sizes], -1))


def test_empty_batch():
    for sizes in ([], torch.empty(0, 2, dtype=torch.int64)):
        params = draw("imagenet128", sizes)
        assert params.crop.shape == (2, 0, 4)
        params.validate(sizes)


def test_selecting_images_and_moving():
    params = draw("stl10", [(96, 96)] * 5)
    assert same(params[1:3], params[[1, 2]])
    assert same(params[-1], params[torch.tensor([4])])
    assert params.to("meta").hue.device.type == "meta"
    assert len(list(params)) == 5


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("crop", (0, 2), [0, 0, 9, 6], r"params.crop\[0, 2\] .* 8 x 6 pixels, got \[0, 0, 9, 6\]"),
        ("crop", (1, 0), [0, 3, 8, 4], r"params.crop\[1, 0\] .*inside its image"),
        ("crop", (1, 1), [-1, 0, 8, 6], r"params.crop\[1, 1\]"),
        ("crop", (1, 1), [0, 0, 0, 6], r"params.crop\[1, 1\]"),
        ("crop", (1, 1), [2**31 - 1, 0, 2**31 - 1, 6], r"params.crop\[1, 1\]"),
        ("translate", (0, 1), [8, 0], r"params.translate\[0, 1\] .* 8 x 6 pixels, got \[8, 0\]"),
        ("translate", (0, 1), [0, -6], r"params.translate\[0, 1\]"),
        ("translate", (0, 1), [-(2**31), 0], r"params.translate\[0, 1\]"),
        ("order", (1, 2), [0, 1, 2, 2], r"params.order\[1, 2\] must be a permutation of 0, 1, 2"),
        ("order", (1, 2), [1, 2, 3, 4], r"params.order\[1, 2\]"),
        ("brightness", (0, 0), -0.5, r"params.brightness\[0, 0\] .* not negative, got -0.5"),
        ("contrast", (1, 2), math.nan, r"params.contrast\[1, 2\] .*, got nan"),
        ("saturation", (1, 0), math.inf, r"params.saturation\[1, 0\] .*, got inf"),
        ("hue", (0, 1), 0.75, r"params.hue\[0, 1\] must be between -0.5 and 0.5 turns, got 0.75"),
        ("hue", (0, 1), math.nan, r"params.hue\[0, 1\]"),
    ],
)
def test_impossible_values_are_named(name, place, value, message):
    params = plain_params()
    params.validate([(8, 6)] * 3)
    changed = getattr(params, name).clone()
    changed[place] = torch.tensor(value, dtype=changed.dtype)
    with pytest.raises(ValueError, match=message):
        replace(params, **{name: changed}).validate([(8, 6)] * 3)


def test_validate_uses_the_size_of_each_image():
    sizes = [(8, 6), (20, 20), (8, 6)]
    params = plain_params()
    crop = params.crop.clone()
    crop[0, 1] = torch.tensor([10, 10, 10, 10])
    replace(params, crop=crop).validate(sizes)
    with pytest.raises(ValueError, match=r"params.crop\[0, 1\]"):
        replace(params, crop=crop).validate(sizes[::-1][1:] + sizes[:1])


@pytest.mark.parametrize("name", [f.name for f in fields(ViewParams)])
def test_wrong_types_and_shapes_are_named(name):
    params = plain_params()
    value = getattr(params, name)
    with pytest.raises(TypeError, match=rf"params.{name} must have dtype {value.dtype}, got"):
        replace(params, **{name: value.double()}).validate([(8, 6)] * 3)
    with pytest.raises(ValueError, match=r"params.\w+ must have shape \[V, N.*same V and N"):
        replace(params, **{name: value[:, :2]}).validate([(8, 6)] * 3)
    if name != "crop":
        with pytest.raises(
            ValueError, match=rf"params.{name} must be on the device of params.crop"
        ):
            replace(params, **{name: value.to("meta")}).validate([(8, 6)] * 3)


def test_wrong_number_of_images():
    with pytest.raises(ValueError, match="must describe 4 images, got 3"):
        plain_params().validate([(8, 6)] * 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sizes": [(32.0, 32.0)]}, TypeError, "sizes must be integers, got torch.float32"),
        ({"sizes": [32, 32]}, ValueError, r"sizes must be \[N, 2\], height and width, got \[2\]"),
        ({"sizes": [(32, 0)]}, ValueError, "sizes must be at least one pixel, got 0"),
        ({"sizes": [(32, 4)]}, ValueError, "sizes must be larger .* 4 pixels, got 4"),
        ({"views": 0}, ValueError, "views must be at least 1, got 0"),
        (
            {"generator": SimpleNamespace(device=torch.device("cuda:0"))},
            ValueError,
            "generator must be on the CPU, .*, got cuda:0",
        ),
        ({"sample_index": torch.tensor([1.0])}, TypeError, "sample_index must be int64, got"),
        ({"sample_index": torch.tensor([1, 2])}, ValueError, r"must be \[1\], got \[2\]"),
        ({"sample_index": torch.tensor([-1])}, ValueError, "must not be negative, got -1"),
    ],
)
def test_sampler_rejects(arguments, error, message):
    sizes = arguments.pop("sizes", [(32, 32)])
    with pytest.raises(error, match=message):
        sample_view_params(POLICIES["cifar"], sizes, **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jitter_probability": 1.5}, "jitter_probability must be between 0 and 1, got 1.5"),
        ({"hue": 0.6}, "hue must be between 0 and 0.5 turns, got 0.6"),
        ({"contrast": -0.1}, "contrast must not be negative, got -0.1"),
        ({"scale": (0.5, 0.3)}, "scale must be"),
        ({"scale": (0.0, 1.0)}, "scale must be"),
        ({"ratio": (1.4, 0.7)}, "ratio must be"),
    ],
)
def test_policy_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        ViewPolicy(32, (0.5,) * 3, (0.5,) * 3, **options)


def test_named_policies():
    assert set(POLICIES) == {"digits", "cifar", "stl10", "imagenet128"}
    for policy in POLICIES.values():
        jitter = (policy.brightness, policy.contrast, policy.saturation)
        assert (jitter, policy.jitter_probability) == ((0.4, 0.4, 0.4), 0.8)
        assert policy.gray_probability == 0.25
    assert {name: policy.size for name, policy in POLICIES.items()} == {
        "digits": 32,
        "cifar": 32,
        "stl10": 64,
        "imagenet128": 128,
    }
    assert [policy.test_resize for policy in POLICIES.values()] == [None, None, 70, 146]
    assert [policy.hue for policy in POLICIES.values()] == [0.2, 0.2, 0.2, 0.1]
