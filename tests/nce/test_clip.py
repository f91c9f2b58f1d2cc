"""The log-sum-exp of a block without a clip, against torch's in float64."""

import math

import pytest
import torch

from amdim_fast.nce.clip import log_sum_exp_

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dims", [(0,), (0, 1)])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_any_scale(dims, scale):
    scores = scale * torch.randn(30, 7, 5)
    expected = scores.double().logsumexp(dims, keepdim=True)
    found = log_sum_exp_(scores.clone(), dims).double()
    eager = scores.logsumexp(dims, keepdim=True).double()
    rounding = torch.finfo(torch.float32).eps * expected.abs().max()
    assert (found - expected).abs().max() <= (eager - expected).abs().max() + rounding


@pytest.mark.parametrize(
    "column",
    [(-INF, -INF, -INF), (-INF, 1.0, 2.0), (INF, 1.0, 2.0), (INF, -INF, 0.0), (NAN, 1.0, -INF)],
)
def test_infinities(column):
    """Of own images, which are no negatives, and of scores beyond float32."""
    scores = torch.tensor(column)[:, None]
    found = log_sum_exp_(scores.clone(), (0,))
    torch.testing.assert_close(found, scores.logsumexp(0, keepdim=True), equal_nan=True)
