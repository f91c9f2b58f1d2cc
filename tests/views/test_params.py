import math
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from amdim_fast.views.params import POLICIES, ViewParams, ViewPolicy
from amdim_fast.views.reference_philox import philox
from amdim_fast.views.sampling import sample_view_params
from tests.views.cases import draw, plain, seeded

SIZES = [(8, 6)] * 3


def same(left, right):
    return all(torch.equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))


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
        ("crop", (0, 2), [0, 0, 9, 6], r"params.crop\[0, 2\] is \[0, 0, 9, 6\]; .* 8 x 6 pixels"),
        ("crop", (1, 0), [0, 3, 8, 4], r"params.crop\[1, 0\] .*inside its image"),
        ("crop", (1, 1), [-1, 0, 8, 6], r"params.crop\[1, 1\]"),
        ("crop", (1, 1), [0, 0, 0, 6], r"params.crop\[1, 1\]"),
        ("crop", (1, 1), [2**31 - 1, 0, 2**31 - 1, 6], r"params.crop\[1, 1\]"),
        ("translate", (0, 1), [8, 0], r"params.translate\[0, 1\] is \[8, 0\]; .* 8 x 6 pixels"),
        ("translate", (0, 1), [0, -6], r"params.translate\[0, 1\]"),
        ("translate", (0, 1), [-(2**31), 0], r"params.translate\[0, 1\]"),
        (
            "order",
            (1, 2),
            [0, 1, 2, 2],
            r"params.order\[1, 2\] is .*; it must be a permutation of 0, 1, 2",
        ),
        ("order", (1, 2), [1, 2, 3, 4], r"params.order\[1, 2\]"),
        ("brightness", (0, 0), -0.5, r"params.brightness\[0, 0\] is -0.5; .* not negative"),
        ("contrast", (1, 2), math.nan, r"params.contrast\[1, 2\] is nan; it must be"),
        ("saturation", (1, 0), math.inf, r"params.saturation\[1, 0\] is inf; it must be"),
        ("hue", (0, 1), 0.75, r"params.hue\[0, 1\] is 0.75; it must be between -0.5 and 0.5 turns"),
        ("hue", (0, 1), math.nan, r"params.hue\[0, 1\]"),
    ],
)
def test_impossible_values_are_named(name, place, value, message):
    params = plain(SIZES, views=2)
    params.validate(SIZES)
    changed = getattr(params, name).clone()
    changed[place] = torch.tensor(value, dtype=changed.dtype)
    with pytest.raises(ValueError, match=message):
        replace(params, **{name: changed}).validate(SIZES)


def test_validate_uses_the_size_of_each_image():
    sizes = [(8, 6), (20, 20), (8, 6)]
    params = plain(SIZES, views=2)
    crop = params.crop.clone()
    crop[0, 1] = torch.tensor([10, 10, 10, 10])
    replace(params, crop=crop).validate(sizes)
    with pytest.raises(ValueError, match=r"params.crop\[0, 1\]"):
        replace(params, crop=crop).validate(sizes[::-1][1:] + sizes[:1])


@pytest.mark.parametrize("name", [f.name for f in fields(ViewParams)])
def test_wrong_types_and_shapes_are_named(name):
    params = plain(SIZES, views=2)
    value = getattr(params, name)
    with pytest.raises(
        TypeError, match=rf"params.{name} is torch.float64; it must be {value.dtype}"
    ):
        replace(params, **{name: value.double()}).validate(SIZES)
    with pytest.raises(ValueError, match=r"params.\w+ is \[.*; it must be \[V, N.*same V and N"):
        replace(params, **{name: value[:, :2]}).validate(SIZES)
    if name != "crop":
        with pytest.raises(
            ValueError, match=rf"params.{name} is on meta; it must be on the device of params.crop"
        ):
            replace(params, **{name: value.to("meta")}).validate(SIZES)


def test_wrong_number_of_images():
    with pytest.raises(ValueError, match=r"len\(params\) is 3; it must be 4"):
        plain(SIZES, views=2).validate([(8, 6)] * 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sizes": [(32.0, 32.0)]}, TypeError, "sizes is torch.float32; it must hold integers"),
        ({"sizes": [32, 32]}, ValueError, r"sizes is \[2\]; it must be \[N, 2\], height and width"),
        ({"sizes": [(32, 0)]}, ValueError, r"min\(sizes\) is 0; it must be at least 1 pixel"),
        ({"sizes": [(32, 4)]}, ValueError, r"min\(sizes\) is 4; it must be larger .* 4 pixels"),
        ({"sizes": [(2**31, 32)]}, ValueError, r"max\(sizes\) is 2147483648; it must be at most"),
        (
            {"sizes": [(2**70, 32)]},
            TypeError,
            r"sizes is \[\(1180591.*, 32\)\]; it must be",
        ),
        (
            {"sizes": [(32, 32), (3,)]},
            TypeError,
            r"sizes is \[\(32, 32\), \(3,\)\]; it must be",
        ),
        ({"sizes": None}, TypeError, "sizes is None; it must be pairs of whole numbers"),
        ({"policy": "stl10"}, TypeError, "policy is 'stl10'; it must be a ViewPolicy, such as POL"),
        ({"policy": None}, TypeError, "policy is None; it must be a ViewPolicy"),
        ({"views": 0}, ValueError, "views is 0; it must be a whole number from 1 to 1048576"),
        ({"views": 10**20}, ValueError, "views is 100000000000000000000; it must be a whole"),
        ({"views": "2"}, ValueError, "views is '2'; it must be a whole number"),
        ({"views": 2.0}, ValueError, "views is 2.0; it must be a whole number"),
        ({"generator": 3}, TypeError, "generator is of type int; it must be a generator"),
        ({"sample_index": [0]}, TypeError, r"sample_index is of type list; it must be int64 \[1\]"),
        (
            {"generator": SimpleNamespace(device=torch.device("cuda:0"))},
            ValueError,
            "generator is on cuda:0; it must be on the CPU",
        ),
        (
            {"sample_index": torch.tensor([1.0])},
            TypeError,
            "sample_index is torch.float32; it must be int64",
        ),
        (
            {"sample_index": torch.tensor([1, 2])},
            ValueError,
            r"sample_index is \[2\]; it must be \[1\]",
        ),
        (
            {"sample_index": torch.tensor([-1])},
            ValueError,
            r"min\(sample_index\) is -1; it must not be negative",
        ),
    ],
)
def test_sampling_rejects(arguments, error, message):
    given = {"policy": POLICIES["cifar"], "sizes": [(32, 32)], **arguments}
    with pytest.raises(error, match=message):
        sample_view_params(given.pop("policy"), given.pop("sizes"), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jitter_probability": 1.5}, "jitter_probability is 1.5; it must be between 0 and 1"),
        ({"hue": 0.6}, "hue is 0.6; it must be between 0 and 0.5 turns"),
        ({"contrast": -0.1}, "contrast is -0.1; it must be finite and not negative"),
        ({"scale": (0.5, 0.3)}, r"scale is \(0.5, 0.3\); it must be"),
        ({"scale": (0.0, 1.0)}, r"scale is \(0.0, 1.0\); it must be"),
        ({"ratio": (1.4, 0.7)}, r"ratio is \(1.4, 0.7\); it must be"),
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
