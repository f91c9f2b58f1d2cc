"""Linear probe on frozen features: full-batch, deterministic."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from amdim_fast.augmentation import center_view
from amdim_fast.data import ImageData
from amdim_fast.encoder import Encoder
from amdim_fast.image_sets import Images, ImageSet
from amdim_fast.views import ViewPolicy

PROBE_PENALTY = 1e-3
PROBE_ITERATIONS = 200


def test_views(images: Images, policy: ViewPolicy) -> Tensor:
    """[N, 3, size, size] normalised test-time view of uint8 images."""
    return center_view(
        images,
        resize=policy.test_resize,
        size=policy.size,
        mean=policy.mean,
        std=policy.std,
        channels_last=True,
    )


@torch.no_grad()
def global_features(
    encoder: Encoder, images: ImageSet, policy: ViewPolicy, *, batch_size: int = 250
) -> Tensor:
    """[N, D] float32 r1 of the frozen encoder in eval mode, on the CPU."""
    was_training = encoder.training
    device = next(encoder.parameters()).device
    encoder.eval()
    try:
        parts = [
            encoder(test_views(images.batch(index), policy).to(device)).r1.flatten(1).float().cpu()
            for index in torch.arange(len(images)).split(batch_size)
        ]
    finally:
        encoder.train(was_training)
    return torch.cat(parts)


def linear_probe(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float:
    """Test accuracy, 0..1, of multinomial logistic regression on standardised features.

    Minimises cross entropy + 1e-3 |W|^2 / 2 over the whole training set with L-BFGS from zero, in
    float64: no sampling, no schedule, the same result every time.

    Args:
        train_features: [N, D].
        train_labels: int64 [N].
        test_features: [M, D].
        test_labels: int64 [M].
    """
    mean, std = train_features.double().mean(0), train_features.double().std(0)
    varies = std > 0
    train, test = (
        ((features.double() - mean) / std)[:, varies]
        for features in (train_features, test_features)
    )
    classes = int(train_labels.max()) + 1
    weight = train.new_zeros(train.shape[1], classes, requires_grad=True)
    bias = train.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=PROBE_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(train @ weight + bias, train_labels)
        loss = loss + 0.5 * PROBE_PENALTY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        predicted = (test @ weight + bias).argmax(1)
    return float((predicted == test_labels).double().mean())


def probe_encoder(encoder: Encoder, data: ImageData, policy: ViewPolicy) -> float:
    """Test accuracy of the linear probe on frozen r1."""
    train, test = _labeled(data)
    return linear_probe(
        global_features(encoder, train, policy),
        train.labels,
        global_features(encoder, test, policy),
        test.labels,
    )


def probe_pixels(data: ImageData) -> float:
    """Test accuracy of the linear probe on raw pixels; images must have one size."""
    train, test = _labeled(data)
    return linear_probe(_pixels(train), train.labels, _pixels(test), test.labels)


def _labeled(data: ImageData) -> tuple[ImageSet, ImageSet]:
    if data.train_labeled is None or data.test is None:
        raise ValueError("the data set has no labels or no test images to probe")
    return data.train_labeled, data.test


def _pixels(images: ImageSet) -> Tensor:
    pixels = images.batch(torch.arange(len(images)))
    if not isinstance(pixels, Tensor):
        raise ValueError("raw pixels can be probed only where all images have one size")
    return pixels.flatten(1).float()
