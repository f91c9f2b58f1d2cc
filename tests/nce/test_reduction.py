"""``reduction=`` of ``nce_loss``: mean, sum and none, with their gradients."""

import pytest
import torch

from amdim_fast import nce_loss
from amdim_fast.nce import reference

OF = {
    "mean": lambda log_prob: -log_prob.mean(dim=(-2, -1)),
    "sum": lambda log_prob: -log_prob.sum(dim=(-2, -1)),
    "none": lambda log_prob: -log_prob,
}


@pytest.mark.parametrize("reduction", OF)
@pytest.mark.parametrize("shape", [(6, 8), (1, 6, 8), (3, 6, 8), (1, 8)])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_reductions(reduction, shape, backend):
    dtype = torch.float64 if backend == "torch" else torch.float32
    src = torch.randn(shape, dtype=dtype, requires_grad=True)
    trg = torch.randn(shape[-2], 5, 8, dtype=dtype, requires_grad=True)
    loss, mean_sq = nce_loss(src, trg, reduction=reduction, backend=backend)
    leaves = [leaf.detach().double().requires_grad_() for leaf in (src, trg)]
    truth = reference.nce_log_prob(*leaves)
    expected = OF[reduction](truth.log_prob)
    close = {"rtol": 1e-10, "atol": 1e-12} if backend == "torch" else {"rtol": 2e-5, "atol": 1e-6}
    close["check_dtype"] = False
    assert loss.shape == (shape[:-2] if reduction != "none" else (*shape[:-1], 5))
    torch.testing.assert_close(loss, expected, **close)
    torch.testing.assert_close(mean_sq, truth.mean_sq, **close)
    upstream = torch.randn(loss.shape, dtype=torch.float64)
    grads = torch.autograd.grad((loss * upstream).sum(), (src, trg))
    truths = torch.autograd.grad((expected * upstream).sum(), leaves)
    torch.testing.assert_close(grads, truths, **close)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="reduction is 'max'; it must be one of mean, sum, none"):
        nce_loss(torch.randn(3, 4), torch.randn(3, 4), reduction="max")
