"""A quick linear probe of features or raw pixels, for the baselines of pre-training."""

from __future__ import annotations

import torch
from torch import Tensor

from amdim_fast.data.datasets import ImageData
from amdim_fast.data.image_sets import ImageSet
from amdim_fast.evaluation.features import extract_features
from amdim_fast.evaluation.logistic import logistic_regression
from amdim_fast.evaluation.metrics import top_k_accuracy
from amdim_fast.model.backbone import AnyEncoder
from amdim_fast.views.params import ViewPolicy
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


def probe_pixels(data: ImageData) -> float:
    """Test accuracy, 0..1, of the linear probe on raw pixels.

    Raises:
        ValueError: the data set has no labels or no test images, or images of several sizes.
    """
    train, test = data.labeled()
    return linear_probe(_pixels(train), train.labels, _pixels(test), test.labels)


def _pixels(images: ImageSet) -> Tensor:
    pixels = images.batch(torch.arange(len(images)))
    if not isinstance(pixels, Tensor):
        raise ValueError(
            "raw pixels can be probed only if all images have the same size; turn baselines off"
        )
    return pixels.flatten(1).float()
