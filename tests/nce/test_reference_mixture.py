"""The judge of mixtures against explicit loops."""

import math

import pytest
import torch

from amdim_fast.nce import reference_mixture as reference
from tests.nce.test_reference import loops


@pytest.mark.parametrize(("tau", "alpha"), [(1.0, 1.0), (2.0, 0.3), (0.5, 2.0), (0.0, 0.7)])
@pytest.mark.parametrize("clip", [2.0, 20.0])
def test_equals_loops(tau, alpha, clip):
    components = 2 * torch.randn(3, 4, 5, dtype=torch.float64)
    trg = torch.randn(4, 2, 5, dtype=torch.float64)
    found = [loops(component, trg, clip, "other_images") for component in components]
    total = 0.0
    for b in range(4):
        for at in range(2):
            scores = [float(log_prob[b, at]) for log_prob, _ in found]
            partition = sum(math.exp(tau * s) for s in scores)
            posterior = [math.exp(tau * s) / partition for s in scores]
            total += sum(q * s for q, s in zip(posterior, scores, strict=True))
            total -= alpha * sum(q * math.log(q) for q in posterior)
    loss, mean_sq, q = reference.mixture_loss(components, trg, tau=tau, alpha=alpha, clip=clip)
    assert float(loss) == pytest.approx(-total / 8, rel=1e-12)
    assert float(mean_sq) == pytest.approx(sum(sq for _, sq in found) / 3, rel=1e-12)
    torch.testing.assert_close(q.sum(0), torch.ones(4, 2, dtype=torch.float64))
