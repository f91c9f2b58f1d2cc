from dataclasses import fields, replace

import pytest
import torch

from amdim_fast.views import reference_sampling, sampling
from amdim_fast.views.params import POLICIES, ViewParams
from amdim_fast.views.sampling import sample_view_params
from tests.threads import torch_threads

STRANGE = replace(
    POLICIES["stl10"],
    scale=(0.9, 1.0),
    ratio=(0.1, 12.0),
    max_translation=2,
    translate_probability=0.3,
    brightness=1.7,
    hue=0.5,
)


def differing(first, second):
    return [
        field.name
        for field in fields(ViewParams)
        if getattr(first, field.name).dtype != getattr(second, field.name).dtype
        or not torch.equal(getattr(first, field.name), getattr(second, field.name))
    ]


def both(policy, count, seed, views=2, extent=(3, 700)):
    generator = torch.Generator().manual_seed(count)
    sizes = torch.randint(*extent, (count, 2), generator=generator)
    index = torch.randint(0, 2**62, (count,), generator=generator)
    return [
        module.sample_views(policy, sizes, index, seed, views)
        for module in (sampling, reference_sampling)
    ]


@pytest.mark.parametrize("name", [*POLICIES, "strange"])
@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63 - 1])
def test_compiled_draws_equal_the_plain_ones(name, seed):
    policy = STRANGE if name == "strange" else POLICIES[name]
    assert differing(*both(policy, 20_000, seed)) == []


def test_compiled_draws_equal_on_wide_images_where_the_fallback_is_taken():
    sizes, index = torch.tensor([[256, 640]]).repeat(20_000, 1), torch.arange(20_000)
    policy = replace(POLICIES["imagenet128"], scale=(0.9, 1.0))
    compiled = sampling.sample_views(policy, sizes, index, 3, 2)
    assert differing(compiled, reference_sampling.sample_views(policy, sizes, index, 3, 2)) == []
    central = torch.tensor([0, 141, 256, 358], dtype=torch.int32)
    assert (compiled.crop == central).all(-1).float().mean() > 0.1


@pytest.mark.parametrize("views", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 65])
def test_any_number_of_views_and_images(views, count):
    assert differing(*both(POLICIES["cifar"], count, 9, views)) == []


def test_the_comparison_sees_another_seed():
    first = both(POLICIES["stl10"], 100, 0)[0]
    second = both(POLICIES["stl10"], 100, 1)[1]
    assert {"crop", "hue", "order", "brightness"} <= set(differing(first, second))


def test_exponential_to_a_part_in_ten_to_the_twelve():
    x = torch.linspace(-5, 5, 10_001, dtype=torch.float64)
    error = (reference_sampling._exponential(x) / x.exp() - 1).abs().max()
    assert error < 1e-12


@pytest.mark.parametrize("threads", [1, 2])
def test_draws_do_not_depend_on_threads(threads):
    with torch_threads(threads):
        assert differing(*both(POLICIES["imagenet128"], 1000, 4)) == []


def test_backend_is_chosen_by_name():
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    drawn = [
        sample_view_params(POLICIES["stl10"], [(90, 80)] * 7, generator=generator, backend=backend)
        for generator, backend in zip(generators, ("compiled", "reference"), strict=True)
    ]
    assert differing(*drawn) == []
    with pytest.raises(ValueError, match="backend is 'c'; it must be one of compiled, reference"):
        sample_view_params(POLICIES["stl10"], [(90, 80)], backend="c")
