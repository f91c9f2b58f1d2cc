"""The backward of the objective: upstream gradients, repetition, and some wanted gradients."""

import pytest
import torch

from amdim_fast import LossMultiNCE, nce_loss
from amdim_fast.nce import op_autograd, torch_passes
from amdim_fast.nce.inputs import NEGATIVES
from tests.nce.cases import lower_floors
from tests.nce.objective_cases import (
    BACKENDS,
    WEIGHT,
    features,
    maps,
    objective_of,
    our_loss,
    ours,
    places,
    relative_error,
    truth,
    wide,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}
# The interpreter multiplies the room between gradients, too, whatever is there.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered in multiply")


@pytest.fixture(autouse=True)
def _small_work(monkeypatch):
    lower_floors(monkeypatch)


def inputs_for(backend, dtype=None):
    """Features in the widest type of the backend."""
    widest = torch.float64 if backend == "torch" else torch.float32
    return features(4, 3, 8, sets=2, dtype=dtype or widest)


def same(found, expected):
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("upstream", [1.0, 2.5, -1.0, 0.0, 1e-30])
def test_gradients_are_multiplied_once(backend, dtype, upstream):
    if backend == "triton" and dtype == torch.float64:
        dtype = torch.float16
    inputs = inputs_for(backend, dtype)
    one, scaled = (ours(*inputs, value, backend=backend) for value in (1.0, upstream))
    expected = truth(*wide(inputs), upstream)
    rounding = 2 * torch.finfo(dtype).eps
    for grad, unit, other in zip(scaled.grads, one.grads, expected.grads, strict=True):
        # float16 gradients are multiplied before they are rounded.
        assert dtype == torch.float16 or torch.equal(grad, upstream * unit)
        assert relative_error(grad, other.to(dtype).double()) <= 16 * rounding


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_upstream_that_is_not_finite_reaches_every_gradient(backend, dtype):
    inputs = inputs_for(backend, dtype)
    assert all(grad.isnan().all() for grad in ours(*inputs, torch.nan, backend=backend).grads)
    one, found = (ours(*inputs, value, backend=backend).grads for value in (1.0, torch.inf))
    for grad, unit in zip(found, one, strict=True):
        torch.testing.assert_close(grad, torch.inf * unit, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_loss_scale_of_float16(backend, scale):
    """Gradients that float16 cannot hold before they are multiplied are as good as the general."""
    src, trg = features(16, 4, 8, dtype=torch.float16, scale=scale)
    with torch.no_grad():
        trg.mul_(scale)
    upstream = 65536.0
    expected = truth(*wide((src, trg)), upstream)
    loss, mean_sq = nce_loss(src, trg, backend=backend)
    general = torch.autograd.grad(upstream * (loss + WEIGHT * mean_sq), (src, trg))
    found = ours(src, trg, upstream, backend=backend)
    if scale < 1:
        unit = expected.grads[0] / upstream
        assert (unit.half().double() - unit).norm() > 0.01 * unit.norm()
    for grad, other, baseline in zip(found.grads, expected.grads, general, strict=True):
        limit = relative_error(baseline, other) + torch.finfo(torch.float16).eps / 2
        assert relative_error(grad, other) <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_upstream_in_float64(dtype):
    inputs = features(4, 3, 8, dtype=dtype)
    found = torch.autograd.grad(2.5 * objective_of(*inputs).double(), inputs)
    assert same(found, ours(*inputs, 2.5).grads)
    assert {grad.dtype for grad in found} == {dtype}


def test_low_precision_is_no_worse_than_eager_with_any_upstream():
    for dtype in (torch.float16, torch.bfloat16):
        inputs = features(16, 4, 8, dtype=dtype)
        expected, eager = truth(*wide(inputs), 2.5), truth(*inputs, 2.5)
        found = ours(*inputs, 2.5)
        for grad, other, baseline in zip(found.grads, expected.grads, eager.grads, strict=True):
            limit = relative_error(baseline, other) + torch.finfo(dtype).eps / 2
            assert relative_error(grad, other) <= limit


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_backward_gives_the_same(backend, dtype):
    """Also when the first result was changed, and when others came in between."""
    inputs = inputs_for(backend, dtype)
    objective = objective_of(*inputs, backend=backend)

    def grads(upstream=1.0, retain_graph=True):
        given = torch.tensor(upstream)
        return torch.autograd.grad(objective, inputs, given, retain_graph=retain_graph)

    first = grads()
    kept = [grad.clone() for grad in first]
    for grad in first:
        grad.zero_()
    assert same(grads(), kept)
    doubled = grads(2.0)
    assert same(doubled, [2 * grad for grad in kept])
    assert not any(grad.isfinite().any() for grad in grads(torch.nan))
    assert same(grads(retain_graph=False), kept)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        grads()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_leaves_hold_are_not_touched(backend):
    """A leaf may keep the memory that a gradient came in."""
    src, trg = inputs_for(backend)
    objective = objective_of(src, trg, backend=backend)
    objective.backward(retain_graph=True)
    once = src.grad.clone(), trg.grad.clone()
    objective.backward(torch.tensor(2.0), retain_graph=True)
    assert same((src.grad, trg.grad), [3 * grad for grad in once])
    src.grad.zero_()
    assert torch.equal(trg.grad, 3 * once[1])
    src.grad = None
    objective.backward(retain_graph=True)
    held = src.grad
    torch.autograd.grad(-5 * objective, (src, trg))
    assert torch.equal(held, once[0])


def test_two_objectives_are_added():
    src, trg = features(5, 4, 6)
    other = features(5, 4, 6)[0]
    total = objective_of(src, trg) + 3 * objective_of(other, trg) + objective_of(src, trg)
    found = torch.autograd.grad(total, (src, trg, other))
    (src_1, trg_1), (src_2, trg_2) = ours(src, trg).grads, ours(other, trg, 3.0).grads
    for grad, expected in zip(found, (2 * src_1, 2 * trg_1 + trg_2, src_2), strict=True):
        torch.testing.assert_close(grad, expected, **EXACT)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("budget", [0, None])
def test_gradcheck(budget, negatives):
    inputs = features(3, 2, 4, sets=2, scale=1.0)

    def function(src, trg):
        return objective_of(src, trg, negatives=negatives, memory_budget=budget)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_second_derivative_is_refused(dtype):
    src, trg = features(3, 2, 4, dtype=dtype)
    factor = torch.ones((), requires_grad=True)
    expected = ours(src, trg, 3.0)
    for upstream in (3.0, 3.0 * factor):
        grads = torch.autograd.grad(
            upstream * objective_of(src, trg), (src, trg), create_graph=True
        )
        assert same([grad.detach() for grad in grads], expected.grads)
        for grad in grads:
            with pytest.raises(RuntimeError, match="second derivative is not supported") as caught:
                grad.sum().backward(retain_graph=True)
            assert "\n" not in str(caught.value)


def test_inputs_changed_in_place_are_noticed():
    for place in (0, 1):
        src, trg = features(4, 3, 6)
        copies = [1 * tensor for tensor in (src, trg)]
        objective = objective_of(*copies)
        copies[place].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            objective.backward()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (4,), (0, 4), (1, 3), (2, 5), (0, 1, 2)])
@pytest.mark.parametrize("budget", [0, None])
def test_some_maps_want_gradients(wanted, budget):
    inputs, locations = maps(), places()
    full = our_loss(inputs, locations, memory_budget=budget)
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(index in wanted)
    loss = LossMultiNCE(tclip=10.0, reg_weight=WEIGHT, memory_budget=budget)
    objective = loss.objective(*inputs, locations=locations).objective
    grads = torch.autograd.grad(objective, [inputs[index] for index in wanted])
    for index, grad in zip(wanted, grads, strict=True):
        torch.testing.assert_close(grad, full.grads[index], **EXACT)


@pytest.mark.parametrize("plant", ["ignored", "applied twice", "negated"])
def test_planted_errors_are_caught(monkeypatch, plant):
    scale = torch_passes.scale

    def twice(*given):
        scale(*given)
        scale(*given)

    wrong = {
        "ignored": lambda *given: None,
        "applied twice": twice,
        "negated": lambda gradients, upstream: scale(gradients, -upstream),
    }
    monkeypatch.setattr(torch_passes, "scale", wrong[plant])
    with pytest.raises(AssertionError):
        test_gradients_are_multiplied_once("torch", torch.float64, 2.5)


def test_gradients_that_are_scaled_again_are_caught(monkeypatch):
    """As if another backward did not make them anew."""
    right = op_autograd._Objective.backward

    def wrong(ctx, *upstream):
        kept = ctx.gradients
        found = right(ctx, *upstream)
        ctx.gradients = kept
        return found

    monkeypatch.setattr(op_autograd._Objective, "backward", staticmethod(wrong))
    with pytest.raises(AssertionError):
        test_every_backward_gives_the_same("torch", torch.float32)
