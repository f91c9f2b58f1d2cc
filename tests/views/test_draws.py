import math
from dataclasses import replace

import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from amdim_fast.views.params import POLICIES
from tests.views.cases import draw, seeded

COUNT = 20_000
# Critical values at a probability of about 1e-4; seeds are fixed, so no run differs from another.
KS_LIMIT = 2.2
CHI_SQUARE_SIGMAS = 4.0


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
