"""The word ``precision``: products of float32 features by float16 limbs, by name only."""

import pytest
import torch

from amdim_fast import LossMultiNCE, last_plan, nce_log_prob, nce_loss, nce_objective
from amdim_fast.nce import layout, limbs, plan, reference
from tests.nce.cases import features


def truth(src, trg, clip):
    wide = [tensor.detach().double().requires_grad_() for tensor in (src, trg)]
    loss, mean_sq = reference.nce_loss(*wide, clip=clip)
    objective = loss.sum() + 0.1 * mean_sq.sum()
    return objective, torch.autograd.grad(objective, wide)


def errors(src, trg, clip, **options):
    """Relative errors of the objective and its gradients, in one pass and in two."""
    expected, expected_grads = truth(src, trg, clip)
    expected = expected.detach()
    loss, mean_sq = nce_loss(src, trg, clip=clip, **options)
    ways = loss.sum() + 0.1 * mean_sq.sum()
    ways = ways, nce_objective(src, trg, mean_sq_weight=0.1, clip=clip, **options).objective
    found = []
    for value in ways:
        grads = torch.autograd.grad(value, (src, trg))
        pairs = zip((value, *grads), (expected, *expected_grads), strict=True)
        found += [float((a.detach() - b).norm() / b.norm()) for a, b in pairs]
    return torch.tensor(found)


WAYS = [("torch", 20.0, None), ("torch", None, 0), ("triton", 20.0, None), ("triton", 20.0, 0)]


@pytest.mark.parametrize(("backend", "clip", "budget"), WAYS)
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_limbs_are_as_close_as_ieee(monkeypatch, backend, clip, scale, budget):
    monkeypatch.setattr(layout, "_layouts", {})
    monkeypatch.setattr(plan, "LEAST_CPU_BYTES", 4096)
    given = features(12, 4, 64, sets=2)
    src, trg = (
        t.detach().mul(s).requires_grad_() for t, s in zip(given, (scale, 1.0), strict=True)
    )
    options = {"backend": backend, "memory_budget": budget}
    ieee = errors(src, trg, clip, **options)
    split = errors(src, trg, clip, precision="limbs", **options)
    assert last_plan().products.endswith(" in limbs")
    assert (split <= 2 * ieee + 2e-7).all(), (split, ieee)


def test_the_default_does_not_split():
    src, trg = features(6, 4, 8, sets=1)
    nce_loss(src, trg)
    assert "limbs" not in last_plan().products


def test_a_lost_limb_is_caught(monkeypatch):
    split = limbs.split

    def without_low(*arguments):
        found = split(*arguments)
        return found._replace(low=torch.zeros_like(found.low))

    monkeypatch.setattr(limbs, "split", without_low)
    src, trg = features(12, 4, 64, sets=2)
    assert errors(src, trg, 20.0, precision="limbs").max() > 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_multiplied_as_they_are(dtype):
    src, trg = (t.detach().to(dtype) for t in features(6, 4, 8, sets=1))
    found, expected = (nce_log_prob(src, trg, precision=word) for word in ("limbs", "auto"))
    assert torch.equal(found.log_prob, expected.log_prob)
    assert "limbs" not in last_plan().products


def test_modules_take_it():
    maps = [torch.randn(6, 16, side, side) for side in (1, 5, 7) * 2]
    locations = (torch.arange(6), torch.arange(6))
    values = [
        torch.stack(LossMultiNCE(precision=word)(*maps, locations=locations))
        for word in ("auto", "limbs")
    ]
    assert last_plan().products.endswith(" in limbs")
    torch.testing.assert_close(*values)


def test_another_word_is_refused():
    src, trg = features(6, 4, 8, sets=1)
    with pytest.raises(ValueError, match="precision is 'half'; it must be one of auto, limbs"):
        nce_loss(src, trg, precision="half")
    with pytest.raises(ValueError, match="precision is 'half'"):
        LossMultiNCE(precision="half")
