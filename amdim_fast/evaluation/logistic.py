"""Multinomial logistic regression on a whole, small training set; deterministic."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

PENALTY = 1e-3
ITERATIONS = 200


def logistic_regression(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, n_classes: int
) -> Tensor:
    """Test logits of logistic regression on standardized features, float64 [M, n_classes].

    Minimizes cross entropy + 1e-3 |W|^2 / 2 over the whole training set with L-BFGS from zero, in
    float64: no sampling, no schedule, the same result every time. Features that are constant over
    the training set are left out. Those that are equal over it, as the channels of gray images are,
    have equal weights; their sum stands for them, which takes less time.

    Args:
        train_features: [N, D].
        train_labels: int64 [N].
        test_features: [M, D].
        n_classes: number of classes.
    """
    mean, std = train_features.double().mean(0), train_features.double().std(0)
    varies = std > 0
    train, test = (
        ((features.double() - mean) / std)[:, varies]
        for features in (train_features, test_features)
    )
    _, group_of, sizes = torch.unique(train, dim=1, return_inverse=True, return_counts=True)
    train, test = (
        features.new_zeros(len(features), len(sizes)).index_add_(1, group_of, features)
        / sizes.sqrt()
        for features in (train, test)
    )
    weight = train.new_zeros(train.shape[1], n_classes, requires_grad=True)
    bias = train.new_zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(train @ weight + bias, train_labels)
        loss = loss + 0.5 * PENALTY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return test @ weight + bias
