"""Features of several types: brought to autocast's type where it is on, refused elsewhere."""

import pytest
import torch

from amdim_fast import (
    FeatureMapContrastiveTask,
    LossMultiNCE,
    nce_log_prob,
    nce_loss,
    nce_objective,
)
from amdim_fast.nce import reference
from amdim_fast.nce.mixture import MixtureNCELoss

WIDTH = 24
PLACES = torch.arange(5), torch.arange(5) + 9


def pair():
    return [torch.randn(5, WIDTH), torch.randn(5, 9, WIDTH)]


def maps():
    return [torch.randn(5, WIDTH, side, side) for side in (1, 5, 7) * 2]


def components():
    found = maps()
    found[0], found[3] = torch.randn(3, 5, WIDTH), torch.randn(3, 5, WIDTH)
    return found


def task(*given):
    return FeatureMapContrastiveTask("01, 02, 11")(
        given[:3], given[3:], generator=torch.Generator().manual_seed(2)
    )


# A loss and its inputs, the first of which come in float32.
CASES = {
    "nce_loss": (nce_loss, pair),
    "nce_log_prob": (lambda *given: nce_log_prob(*given)[:1], pair),
    "nce_objective": (lambda *given: nce_objective(*given, mean_sq_weight=0.1)[:1], pair),
    "the loss": (lambda *given: LossMultiNCE()(*given, locations=PLACES), maps),
    "its objective": (lambda *g: LossMultiNCE().objective(*g, locations=PLACES)[:1], maps),
    "the task": (task, maps),
    "a mixture": (lambda *given: MixtureNCELoss()(*given, locations=PLACES)[:4], components),
}


def mixed(inputs, dtype):
    """The global features in float32, the maps in a half type, as BatchNorm leaves them."""
    first = inputs[0].shape
    return [tensor if tensor.shape == first else tensor.to(dtype) for tensor in inputs]


def evaluated(loss, inputs):
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    found = loss(*leaves)
    return [*found, *torch.autograd.grad(sum(part.sum() for part in found), leaves)]


# A generator is no input of a graph.
@pytest.mark.parametrize(
    ("name", "dtype", "compiled"),
    [(name, dtype, False) for name in CASES for dtype in (torch.bfloat16, torch.float16)]
    + [(name, torch.bfloat16, True) for name in CASES if name != "the task"],
)
def test_several_types_are_brought_to_that_of_autocast(name, dtype, compiled):
    loss, make = CASES[name]
    called = torch.compile(loss, backend="aot_eager") if compiled else loss
    inputs = mixed(make(), dtype)
    with torch.autocast("cpu", dtype=dtype):
        found = evaluated(called, inputs)
    for value, leaf in zip(found[-len(inputs) :], inputs, strict=True):
        assert value.dtype == leaf.dtype
    expected = evaluated(loss, [tensor.to(dtype) for tensor in inputs])
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value, other.to(value.dtype))


def test_that_is_the_loss_of_the_rounded_features():
    src, trg = mixed(pair(), torch.bfloat16)
    with torch.autocast("cpu"):
        found = nce_loss(src, trg)
    expected = reference.nce_loss(src.bfloat16().double(), trg.double())
    torch.testing.assert_close(found, expected, check_dtype=False)


@pytest.mark.parametrize("name", CASES)
def test_without_autocast_they_are_refused(name):
    loss, make = CASES[name]
    with pytest.raises(TypeError, match="they must have one dtype"):
        loss(*mixed(make(), torch.bfloat16))


@pytest.mark.parametrize("name", CASES)
def test_float64_beside_others_is_refused(name):
    loss, make = CASES[name]
    first, *rest = make()
    with torch.autocast("cpu"), pytest.raises(TypeError, match="they must have one dtype"):
        loss(first, *[tensor.double() for tensor in rest])
