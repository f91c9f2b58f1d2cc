"""Several views of a batch in one call: each as it would be alone."""

import copy

import pytest
import torch
from torch import nn

from amdim_fast.model.encoder import Encoder, encode_views
from tests.nce.cases import DEVICE

IMAGES = 3


def make(size, use_bn=False, backend="torch"):
    encoder = Encoder(size, 4, 17, 2, use_bn, backend=backend).double().to(DEVICE)
    for parameter in encoder.parameters():
        if parameter.ndim == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return encoder


def draw(size, views=2):
    return torch.randn(views, IMAGES, 3, size, size, dtype=torch.float64, device=DEVICE)


def gradients(encoder, outputs):
    """Of a cost in which every feature of every view has its own weight."""
    flat = torch.cat([part.flatten() for view in outputs for part in view])
    weights = torch.linspace(-1, 1, len(flat), dtype=flat.dtype, device=DEVICE)
    parameters = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(flat @ weights, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize(("size", "views"), [(32, 2), (64, 3), (128, 1)])
def test_views_at_once_are_the_views_one_by_one(size, views, use_bn):
    alone = make(size, use_bn)
    together = copy.deepcopy(alone)
    x = draw(size, views)
    right, found = [alone(view) for view in x], together(x)
    assert len(found) == views
    for ours, theirs in zip(found, right, strict=True):
        for part, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-9)
            assert part.is_contiguous(memory_format=torch.channels_last)
    statistics = dict(alone.named_buffers())
    for name, value in together.named_buffers():
        torch.testing.assert_close(value, statistics[name], rtol=1e-9, atol=1e-9)
    expected = gradients(alone, right)
    for name, value in gradients(together, found).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-7, atol=1e-7)


def test_statistics_of_all_views_together_would_be_noticed():
    encoder = make(32)
    x = draw(32)
    both = encoder(x.flatten(0, 1))
    assert (both.r1[:IMAGES] - encoder(x)[0].r1).abs().max() > 1e-2


def test_what_is_called_once_a_view_and_what_is_not():
    x = draw(32)
    seen = []
    encoder = make(32)
    encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    assert len(encode_views(encoder, x)) == 2
    other = nn.Sequential(encoder)
    assert len(encode_views(other, x)) == 2
    assert seen == [x.shape, x.shape[1:], x.shape[1:]]


def test_wrong_views_are_named():
    encoder = Encoder(32, 4, 8, 1)
    with pytest.raises(ValueError, match=r"x has shape \[2, 5, 3, 16, 16\]; it must be \[B, 3, 32"):
        encoder(torch.zeros(2, 5, 3, 16, 16))
    with pytest.raises(ValueError, match="x has 1 images; it must have 2 or more in training"):
        encoder(torch.zeros(2, 1, 3, 32, 32))
    assert encoder.eval()(torch.zeros(2, 1, 3, 32, 32))[1].r5.shape == (1, 8, 5, 5)
