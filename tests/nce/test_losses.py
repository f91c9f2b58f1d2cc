"""``LossMultiNCE`` against the original's recorded outputs and the float64 reference."""

import numpy as np
import pytest
import torch

from amdim_fast import LossMultiNCE, last_plan
from amdim_fast.nce import reference
from tests.nce.cases import lower_floors


@pytest.fixture(autouse=True)
def _small_work(monkeypatch):
    lower_floors(monkeypatch, least=1024)


NAMES = ("r1_x1", "r5_x1", "r7_x1", "r1_x2", "r5_x2", "r7_x2")
BUDGETS = (0, 20_000, None)


def maps(images=7, width=12, sides=(1, 5, 7), dtype=torch.float64, channels_last=True):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [
        torch.randn(images, width, side, side, dtype=dtype)
        .contiguous(memory_format=layout)
        .requires_grad_()
        for side in sides * 2
    ]


def draw(images, locations):
    return torch.randint(0, locations, (images,)), torch.randint(0, locations, (images,))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", ["clip10", "clip20", "saturated"])
def test_original_outputs(golden, name, channels_last, budget):
    """Same seed, so the same drawn locations, losses and gradients as the original."""
    recorded = np.load(golden / f"loss_{name}.npz")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    inputs = [
        torch.from_numpy(recorded[key]).contiguous(memory_format=layout).requires_grad_()
        for key in NAMES
    ]
    loss = LossMultiNCE(tclip=float(recorded["tclip"]), memory_budget=budget)
    torch.manual_seed(int(recorded["seed"]))
    outputs = loss(*inputs)
    for ours, key in zip(outputs, ("loss_1t5", "loss_1t7", "loss_5t5", "lgt_reg"), strict=True):
        assert float(ours.detach()) == pytest.approx(float(recorded[key]), rel=1e-5)
    sum(outputs).backward()
    for tensor, key in zip(inputs, NAMES, strict=True):
        expected = torch.from_numpy(recorded[f"grad_{key}"])
        assert (tensor.grad - expected).norm() <= 2e-5 * expected.norm()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("clip", [5.0, 43.0, 100.0, None])
@pytest.mark.parametrize(
    ("images", "width", "sides"), [(7, 12, (1, 5, 7)), (1, 3, (1, 2, 3)), (2, 1, (1, 4, 1))]
)
def test_equals_reference(images, width, sides, clip, budget):
    inputs = maps(images, width, sides)
    locations = draw(images, sides[1] ** 2)
    loss = LossMultiNCE(tclip=clip, reg_weight=0.04, memory_budget=budget)
    ours = loss(*inputs, locations=locations)
    truth = reference.multiscale_nce(
        tuple(inputs[:3]), tuple(inputs[3:]), locations, clip=clip, reg_weight=0.04
    )
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    weights = torch.randn(4, dtype=torch.float64)
    grads = [
        torch.autograd.grad((torch.stack(outputs) * weights).sum(), inputs)
        for outputs in (ours, truth)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", range(6))
def test_frozen_maps(frozen):
    """A map without gradient changes none of the others, drawn sources included."""
    inputs = maps()
    locations = draw(7, 25)
    full = torch.autograd.grad(sum(LossMultiNCE()(*inputs, locations=locations)), inputs)
    inputs[frozen].requires_grad_(False)
    rest = [tensor for tensor in inputs if tensor.requires_grad]
    grads = torch.autograd.grad(sum(LossMultiNCE()(*inputs, locations=locations)), rest)
    expected = [grad for index, grad in enumerate(full) if index != frozen]
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def test_locations_follow_the_generator():
    inputs = maps()
    loss = LossMultiNCE()
    runs = [loss(*inputs, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    generator = torch.Generator().manual_seed(5)
    locations = tuple(torch.randint(0, 25, (7,), generator=generator) for _ in range(2))
    replayed = loss(*inputs, locations=locations)
    assert all(torch.equal(a, b) for a, b in zip(runs[0], replayed, strict=True))
    other = loss(*inputs, locations=(locations[1], locations[0]))
    assert not torch.equal(other[2], replayed[2])


def test_four_pairings_share_targets():
    """Six costs cost four products: sources of one target map are stacked."""
    LossMultiNCE(memory_budget=0)(*maps(dtype=torch.float32))
    assert len(last_plan().pairings) == 4


def test_half_precision_features_give_float32_losses():
    inputs = maps(dtype=torch.bfloat16)
    outputs = LossMultiNCE()(*inputs)
    assert {output.dtype for output in outputs} == {torch.float32}
    sum(outputs).backward()
    assert all(tensor.grad.dtype == torch.bfloat16 for tensor in inputs)


def test_has_no_state():
    assert not LossMultiNCE().state_dict()


def test_gradients_have_the_layout_of_their_maps():
    inputs = maps(images=64, width=64, dtype=torch.float32)
    grads = torch.autograd.grad(sum(LossMultiNCE(memory_budget=0)(*inputs)), inputs)
    for grad, tensor in zip(grads, inputs, strict=True):
        assert grad.stride() == tensor.stride()
