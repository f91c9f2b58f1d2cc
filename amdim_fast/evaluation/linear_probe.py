"""A quick linear probe of features or raw pixels, for the baselines of pre-training."""

from __future__ import annotations

from torch import Tensor

from amdim_fast.data.datasets import ImageData
from amdim_fast.evaluation.features import extract_features, extract_pixels
from amdim_fast.evaluation.logistic import logistic_regression
from amdim_fast.evaluation.metrics import top_k_accuracy
from amdim_fast.model.backbone import AnyEncoder
from amdim_fast.views.params import POLICIES, ViewPolicy
from amdim_fast.views.preprocessing import Preprocessing


def linear_probe(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float:
    """Test accuracy, 0..1, of ``logistic_regression``."""
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    logits = logistic_regression(train_features, train_labels, test_features, classes)
    return top_k_accuracy(logits, test_labels, 1)


def probe_encoder(encoder: AnyEncoder, data: ImageData, policy: ViewPolicy) -> float:
    """Test accuracy, 0..1, of the linear probe on frozen r1, in evaluation mode.

    Raises:
        ValueError: the data set has no labels or no test images.
    """
    train, test = data.labeled()
    preprocessing = Preprocessing.of(policy)
    return linear_probe(
        extract_features(encoder, train, preprocessing),
        train.labels,
        extract_features(encoder, test, preprocessing),
        test.labels,
    )


def probe_pixels(data: ImageData, policy: ViewPolicy = POLICIES["digits"]) -> float:
    """Test accuracy, 0..1, of the linear probe on raw pixels.

    Args:
        data: with labels and test images.
        policy: its test-time transform brings images to one size.

    Raises:
        ValueError: the data set has no labels or no test images.
    """
    train, test = data.labeled()
    preprocessing = Preprocessing.of(policy)
    return linear_probe(
        extract_pixels(train, preprocessing),
        train.labels,
        extract_pixels(test, preprocessing),
        test.labels,
    )
