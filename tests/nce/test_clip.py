"""The log-sum-exp of pieces without a clip, against torch's in float64."""

import math

import pytest
import torch

from amdim_fast.nce.clip import add_exp_, log_total

INF, NAN = math.inf, math.nan


def log_sum_exp(scores, dims, pieces):
    """By as many calls."""
    largest = torch.full_like(scores.sum(dims), -INF)
    total = torch.zeros_like(largest)
    for piece in scores.clone().split(-(-len(scores) // pieces)):
        add_exp_(total, largest, piece, dims)
    return log_total(total, largest)


@pytest.mark.parametrize("pieces", [1, 7, 30])
@pytest.mark.parametrize("dims", [(0,), (0, 1)])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_any_scale(dims, scale, pieces):
    scores = scale * torch.randn(30, 7, 5)
    expected = scores.double().logsumexp(dims)
    found = log_sum_exp(scores, dims, pieces).double()
    eager = scores.logsumexp(dims).double()
    rounding = torch.finfo(torch.float32).eps * expected.abs().max()
    assert (found - expected).abs().max() <= (eager - expected).abs().max() + rounding


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize(
    "column",
    [(-INF, -INF, -INF), (-INF, 1.0, 2.0), (INF, 1.0, 2.0), (INF, -INF, 0.0), (NAN, 1.0, -INF)],
)
def test_infinities(column, pieces):
    """Of own images, which are no negatives, and of scores beyond float32."""
    scores = torch.tensor(column)[:, None]
    found = log_sum_exp(scores, (0,), pieces)
    torch.testing.assert_close(found, scores.logsumexp(0), equal_nan=True)
