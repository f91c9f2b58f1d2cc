"""Views drawn as records where they are made: bit for bit what ``sample_view_params`` draws."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from amdim_fast.views import op, sampling
from amdim_fast.views.augment import augment
from amdim_fast.views.params import POLICIES
from amdim_fast.views.sampling import draw_records
from amdim_fast.views.two_views import TwoViews
from tests.views.cases import draw, seeded, white_noise
from tests.views.test_op import values

ANYWHERE = torch.zeros(0, dtype=torch.uint8)
SIZES = [(40, 64), (256, 96), (33, 33), (500, 41)]
INDEX = torch.tensor([7, 2**40, 0, 2**62])
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def packed(params, sizes, size):
    """Records by way of ``ViewParams``."""
    window = torch.tensor([size, size, 0, 0], dtype=torch.int32)
    return torch.ops.amdim_fast.pack_views(*values(params), torch.tensor(sizes), window)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_records_are_the_packed_parameters(name, views, device):
    """Many images, so that central crops, all orders and every chance occur."""
    policy = POLICIES[name]
    sizes = SIZES * 100
    index = (INDEX[None] + torch.arange(100)[:, None] % (2**62)).flatten() % 2**62
    options = {"views": views, "sample_index": index}
    right = packed(draw(policy, sizes, seed=3, **options), sizes, policy.size)
    found, layout = draw_records(
        ANYWHERE.to(device), policy, torch.tensor(sizes), generator=seeded(3), **options
    )
    assert found.device.type == device
    assert torch.equal(found.cpu(), right)
    lengths = [0, *(3 * height * width for height, width in sizes)]
    starts = torch.tensor(lengths).cumsum(0)[:-1]
    assert torch.equal(layout.cpu(), torch.cat([starts[:, None], torch.tensor(sizes)], 1))
    other, _ = draw_records(ANYWHERE, policy, torch.tensor(sizes), generator=seeded(4), **options)
    assert not torch.equal(other, right)


def test_an_extreme_ratio_takes_the_central_crop():
    policy = replace(POLICIES["stl10"], ratio=(3.0, 3.1))
    sizes = [(400, 20)] * 50
    found, _ = draw_records(ANYWHERE, policy, torch.tensor(sizes), generator=seeded())
    assert torch.equal(found, packed(draw(policy, sizes), sizes, policy.size))
    assert (found[..., 2] == round(20 / 3.0)).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mixed", [False, True])
def test_two_views_are_the_views_of_sampled_parameters(mixed, device):
    shapes = [(40, 40), (51, 33 if mixed else 40)] if mixed else [(40, 40)] * 2
    pictures = [white_noise(*shape, seed=i) for i, shape in enumerate(shapes)]
    policy = POLICIES["stl10"]
    right = augment(pictures, draw(policy, shapes), size=64, mean=policy.mean, std=policy.std)
    images = [picture.to(device) for picture in pictures]
    found = TwoViews(policy)(images if mixed else torch.stack(images), generator=seeded())
    assert torch.equal(found.cpu(), right)
    torch.manual_seed(5)
    first = TwoViews(policy)(images)
    torch.manual_seed(5)
    assert torch.equal(first.cpu(), TwoViews(policy)(pictures))


def arguments(**changes):
    given = {
        "images": ANYWHERE,
        "sizes": torch.tensor(SIZES),
        "sample_index": torch.arange(4),
        "policy": torch.tensor(sampling._policy_values(POLICIES["cifar"]), dtype=torch.float64),
        "seed": 1,
        "views": 2,
        "size": 32,
    }
    return list((given | changes).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": torch.tensor(SIZES).int()}, "sizes must be contiguous int64"),
        ({"sizes": torch.tensor(SIZES[:3])}, "sizes must be contiguous int64"),
        ({"sizes": torch.tensor(SIZES).t().contiguous().t()}, "sizes must be contiguous int64"),
        ({"sizes": torch.tensor([*SIZES[:3], (0, 9)])}, r"sizes must be in 1\.\.2\^24"),
        ({"sizes": torch.tensor([*SIZES[:3], (9, 2**31)])}, r"sizes must be in 1\.\.2\^24"),
        ({"sample_index": torch.arange(4).double()}, "sample_index must be contiguous int64"),
        ({"policy": torch.zeros(19)}, "policy must be contiguous float64"),
        ({"policy": torch.zeros(18, dtype=torch.float64)}, "policy must be contiguous float64"),
        ({"policy": torch.full((19,), torch.nan, dtype=torch.float64)}, "policy must be finite"),
        ({"policy": torch.full((19,), 1e30, dtype=torch.float64)}, "max_translation must be in"),
        ({"views": -1}, "views is -1; it must be 0 or more"),
    ],
)
def test_wrong_arguments_of_the_op_are_named(changes, message):
    assert torch.ops.amdim_fast.draw_records(*arguments())[0].shape == (2, 4, 19)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.amdim_fast.draw_records(*arguments(**changes))


def test_opcheck_and_a_graph_that_draws_what_eager_draws():
    policy = sampling._policy_values(POLICIES["cifar"])
    for index in (None, INDEX):
        torch.library.opcheck(
            torch.ops.amdim_fast.draw_view_records.default,
            (ANYWHERE, torch.tensor(SIZES), index, policy, 2, 32),
            test_utils=("test_schema", "test_faketensor"),
        )
    images = torch.stack([white_noise(40, 40, seed) for seed in range(3)])
    two_views = TwoViews("cifar")
    torch.manual_seed(1)
    right = two_views(images)
    torch.manual_seed(1)
    assert torch.equal(torch.compile(two_views, backend="aot_eager", fullgraph=True)(images), right)


def test_a_tracer_meets_no_pinned_memory(monkeypatch):
    def refuse(*_):
        raise AssertionError("pin_memory was traced")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FakeTensorMode():
        small = torch.empty(3, dtype=torch.int64)
        assert op._on_device(small, torch.device("cuda")).device.type == "cuda"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(AssertionError, match="pin_memory was traced"):
        op._on_device(torch.zeros(3), torch.device("cuda"))
