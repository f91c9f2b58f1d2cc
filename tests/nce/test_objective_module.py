"""``LossMultiNCE.objective`` as a module's method: drawn locations, copies, torch.compile."""

import copy
import pickle

import pytest
import torch

from amdim_fast import LossMultiNCE, nce_objective
from amdim_fast.nce.feature_maps import draw_locations, view_locations
from tests.nce.cases import lower_floors
from tests.nce.objective_cases import maps, places


@pytest.fixture(autouse=True)
def _small_work(monkeypatch):
    lower_floors(monkeypatch)


def assert_same(found, expected):
    """The sum of the four losses, and each of them; parts are drawn from one location each."""
    torch.testing.assert_close(found.objective, sum(expected), rtol=1e-12, atol=1e-12)
    for part, other in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(part, other.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sides", [(1, 5, 7), (1, 2, 3)])
def test_locations_are_those_of_forward_and_of_the_original(sides):
    """The default generator, for view 1 and then for view 2; it ends in the same state."""
    inputs, count = maps(sides=sides), sides[1] ** 2
    loss = LossMultiNCE()
    states = []
    torch.manual_seed(11)
    drawn = torch.randint(0, count, (5,)), torch.randint(0, count, (5,))
    states.append(torch.get_rng_state())
    expected = loss(*inputs, locations=drawn)
    for function in (loss, loss.objective):
        torch.manual_seed(11)
        found = function(*inputs)
        states.append(torch.get_rng_state())
        if function == loss.objective:
            assert_same(found, expected)
        else:
            torch.testing.assert_close(found, expected)
    assert all(torch.equal(state, states[0]) for state in states)


def test_locations_follow_the_generator():
    inputs, loss = maps(), LossMultiNCE()
    runs = [loss.objective(*inputs, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    generator = torch.Generator().manual_seed(5)
    locations = tuple(torch.randint(0, 25, (5,), generator=generator) for _ in range(2))
    assert_same(runs[0], loss(*inputs, locations=locations))
    other = loss.objective(*inputs, locations=locations[::-1])
    assert not torch.equal(other.loss_5t5, runs[0].loss_5t5)


@pytest.mark.parametrize("images", [1, 2, 7, 15, 16, 17, 64, 1001])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("count", [1, 25, 49])
def test_one_draw_for_two_views_is_two_draws(images, given, count):
    """On a CPU the generator gives one number after the other."""
    trg = torch.empty(images, count, 1)

    def drawn(function):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(3) if given else None
        found = function(generator)
        return *found, torch.get_rng_state() if generator is None else generator.get_state()

    apart = drawn(
        lambda generator: [torch.randint(0, count, (images,), generator=generator) for _ in "12"]
    )
    together = drawn(lambda generator: view_locations(None, (trg, trg), generator))
    split = drawn(lambda generator: draw_locations(trg, generator, count=2).split(images))
    for found in (together, split):
        assert all(torch.equal(a, b) for a, b in zip(found, apart, strict=True))


def test_views_of_two_sizes_are_drawn_one_after_the_other():
    trgs = torch.empty(6, 25, 1), torch.empty(6, 9, 1)
    torch.manual_seed(0)
    expected = torch.randint(0, 25, (6,)), torch.randint(0, 9, (6,))
    torch.manual_seed(0)
    found = view_locations(None, trgs, None)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies(copied):
    inputs, locations = maps(), places()
    loss = LossMultiNCE(tclip=7.0, reg_weight=0.2, memory_budget=3_000)
    found = [
        torch.autograd.grad(module.objective(*inputs, locations=locations).objective, inputs)
        for module in (loss, copied(loss))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_objective_is_eager_in_every_backward(dtype):
    """The whole graph; called twice, and each call's graph gone back through twice."""
    loss = LossMultiNCE(tclip=20.0)
    locations = places()

    def step(*inputs):
        found = loss.objective(*inputs, locations=locations)
        return found.objective, found.loss_5t5

    compiled = torch.compile(step, fullgraph=True)
    with torch._functorch.config.patch(donated_buffer=False):
        for _ in range(2):
            inputs = maps(dtype=dtype)
            objective, part = step(*inputs)
            ours, our_part = compiled(*inputs)
            assert torch.equal(ours, objective)
            assert torch.equal(our_part, part)
            assert not our_part.requires_grad
            for upstream in (1.0, 2.5, 1.0):
                expected, found = (
                    torch.autograd.grad(value, inputs, torch.tensor(upstream), retain_graph=True)
                    for value in (objective, ours)
                )
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_compiled_function_of_one_pairing():
    src = torch.randn(2, 6, 16, requires_grad=True)
    trg = torch.randn(6, 9, 16, requires_grad=True)

    def step(src, trg):
        found = nce_objective(2 * src, trg.tanh(), mean_sq_weight=0.1, memory_budget=2_000)
        return 3 * found.objective + src.square().sum()

    results = [
        torch.autograd.grad(function(src, trg), (src, trg))
        for function in (step, torch.compile(step, fullgraph=True))
    ]
    for grad, expected in zip(*results, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-6)
