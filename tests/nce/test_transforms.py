"""torch.func: grad, vjp, jacrev and vmap against the reference; forward mode is refused."""

from functools import partial

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

from amdim_fast import LossMultiNCE, nce_log_prob, nce_loss, nce_objective
from amdim_fast.nce import reference

# torch compiles its own formulas on first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
FORWARD_MODE = r"forward mode .* amdim_fast\.nce\.reference\.nce_log_prob has them"
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def features(*lead, sets=(), images=4):
    src = torch.randn(*lead, *sets, images, 8, dtype=torch.float64)
    return src, torch.randn(*lead, images, 3, 8, dtype=torch.float64)


def ours(src, trg, **options):
    output = nce_log_prob(src, trg, **options)
    return output.log_prob, output.mean_sq


def theirs(src, trg, **options):
    output = reference.nce_log_prob(src, trg, **options)
    return output.log_prob, output.mean_sq


def total(function, src, trg):
    log_prob, mean_sq = function(src, trg)
    return log_prob.square().sum() + 0.3 * mean_sq.sum()


TRANSFORMS = {
    "grad": lambda f: func.grad(partial(total, f), argnums=(0, 1)),
    "grad of src": lambda f: func.grad(partial(total, f)),
    "vjp": lambda f: lambda *given: func.vjp(f, *given)[1](f(*given)),
    "jacrev": lambda f: func.jacrev(f, argnums=(0, 1)),
    "grad and value": lambda f: func.grad_and_value(partial(total, f), argnums=1),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("sets", [(), (2,)])
@pytest.mark.parametrize("budget", [0, None])
def test_reverse_mode_equals_the_reference(name, sets, budget):
    given = features(sets=sets)
    transform = TRANSFORMS[name]
    found = transform(partial(ours, memory_budget=budget))(*given)
    torch.testing.assert_close(found, transform(theirs)(*given), **EXACT)


@pytest.mark.parametrize("name", [None, *TRANSFORMS])
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 1)])
def test_vmap_is_one_call_a_member(name, in_dims):
    transform = TRANSFORMS[name] if name else lambda f: f
    src, trg = features(3)
    given = src if in_dims[0] == 0 else src[0], trg[0] if in_dims[1] is None else trg
    if in_dims[1] == 1:
        given = given[0], trg.transpose(0, 1)
    found, expected = (func.vmap(transform(f), in_dims)(*given) for f in (ours, theirs))
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_transform_and_an_ordinary_backward():
    src, trg = (tensor.requires_grad_() for tensor in features())
    results = []
    for f in (ours, theirs):
        value = func.vmap(partial(total, f), (0, None))(torch.stack([src, 2 * src]), trg)
        results.append(torch.autograd.grad(value.sum(), (src, trg)))
    torch.testing.assert_close(*results, **EXACT)


@pytest.mark.parametrize("alone", [False, True])
def test_the_whole_loss(alone):
    maps = [torch.randn(4, 8, side, side, dtype=torch.float64) for side in (1, 5, 7) * 2]
    places = torch.arange(4), torch.arange(4) + 9
    loss = LossMultiNCE(20.0)

    def ours(*maps):
        if alone:
            return loss.objective(*maps, locations=places).objective
        return sum(loss(*maps, locations=places))

    def theirs(*maps):
        parts = maps[:3], maps[3:], places
        return sum(reference.multiscale_nce(*parts, clip=20.0, reg_weight=5e-2))

    found, expected = (func.grad(f, argnums=tuple(range(6)))(*maps) for f in (ours, theirs))
    torch.testing.assert_close(found, expected, **EXACT)


def test_the_objective_of_one_pairing():
    src, trg = features(sets=(2,))

    def ours(src, trg):
        return nce_objective(src, trg, mean_sq_weight=0.3).objective

    def theirs(src, trg):
        loss, mean_sq = reference.nce_loss(src, trg)
        return (loss + 0.3 * mean_sq).sum()

    found, expected = (func.grad_and_value(f, argnums=(0, 1))(src, trg) for f in (ours, theirs))
    torch.testing.assert_close(found, expected, **EXACT)


def losses(src, trg):
    return nce_loss(src, trg)[0]


def objective(src, trg):
    return nce_objective(src, trg, mean_sq_weight=0.1).objective


def dual(function, *given):
    with forward_ad.dual_level():
        return function(*(forward_ad.make_dual(tensor, tensor) for tensor in given))


FORWARD = {
    "jvp": lambda f, *given: func.jvp(f, given, given),
    "jacfwd": lambda f, *given: func.jacfwd(f)(*given),
    "hessian": lambda f, *given: func.hessian(f)(*given),
    "dual tensors": dual,
    "dual tensors that want gradients": lambda f, src, trg: dual(f, src, trg.requires_grad_()),
    "jvp of grad": lambda f, *given: func.jvp(func.grad(f, argnums=(0, 1)), given, given),
}


@pytest.mark.parametrize("function", [losses, objective])
@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode_is_refused(name, function):
    with pytest.raises(RuntimeError, match=FORWARD_MODE) as caught:
        FORWARD[name](function, *features())
    assert "\n" not in str(caught.value)


def test_tensors_without_a_tangent_pass_in_a_dual_level():
    src, trg = features()
    with forward_ad.dual_level():
        forward_ad.make_dual(src, src)
        assert torch.equal(losses(src, trg), losses(src.clone(), trg))


def test_a_second_derivative_is_refused():
    src, trg = features()
    with pytest.raises(RuntimeError, match="second derivative is not supported"):
        func.grad(lambda src: func.grad(losses)(src, trg).sum())(src)


def test_the_reference_that_the_sentences_name_has_both():
    src, trg = features()
    src = 0.5 * src

    def loss(src):
        return reference.nce_loss(src, trg)[0]

    _, found = func.jvp(loss, (src,), (src,))
    step = 1e-6
    expected = (loss((1 + step) * src) - loss((1 - step) * src)) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert func.hessian(loss)(src).norm() > 0
