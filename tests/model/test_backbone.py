"""AMDIM over other networks: features by hand, gradients in micro-batches, and wrong maps."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.vision_transformer import VisionTransformer

from amdim_fast import AMDIM, BackboneEncoder, Encoder
from amdim_fast.model.backbone import _chosen
from amdim_fast.model.encoder import encode_views
from amdim_fast.model.frozen import encode
from amdim_fast.model.sync_batchnorm import synchronize_batchnorm
from amdim_fast.training.step import Training
from tests.model.backbone_cases import Maps, make_over
from tests.model.gradient_cases import SPLITS, both, distance, gradients, make_views, statistics
from tests.training.tiny import TINY


def windows(found, side):
    """Means over windows of one size that touch both ends, location by location."""
    step = found.shape[-1] // side
    width = found.shape[-1] - step * (side - 1)
    rows = [
        torch.stack(
            [
                found[:, :, y : y + width, x : x + width].mean((2, 3))
                for x in range(0, step * side, step)
            ],
            -1,
        )
        for y in range(0, step * side, step)
    ]
    return torch.stack(rows, -2)


def normalized(x):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


def test_features_are_the_heads_of_the_pooled_maps():
    model, ((x, _), _) = make_over(), make_views(5)
    maps = []
    for conv, norm in zip(model.encoder.network.convs, model.encoder.network.norms, strict=True):
        x_in = maps[-1] if maps else x
        found = normalized(F.conv2d(x_in, conv.weight, conv.bias, 2, 1))
        maps.append((found * norm.weight[:, None, None] + norm.bias[:, None, None]).relu())
    assert [part.shape[-1] for part in maps] == [16, 8, 4]
    features = model.encoder(x)
    for name, part, side in (("1", maps[2], 1), ("5", maps[1], 5), ("7", maps[0], 7)):
        head = getattr(model.encoder, f"rkhs_block_{name}")
        pooled = windows(part, side)
        hidden = normalized(F.conv2d(pooled, head.conv1.weight))
        scale, shift = (v[:, None, None] for v in (head.bn_hid.bn.weight, head.bn_hid.bn.bias))
        hidden = F.conv2d((hidden * scale + shift).relu(), head.conv2.weight)
        found = hidden + F.conv2d(pooled, head.shortcut.weight, head.shortcut.bias)
        norm = head.bn_out.bn
        truth = normalized(found) * norm.weight[:, None, None] + norm.bias[:, None, None]
        ours = getattr(features, f"r{name}")
        assert ours.shape == (5, 12, side, side)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-11)


def test_views_at_once_are_views_one_by_one():
    model, (views, _) = make_over(), make_views(4)
    alone = copy.deepcopy(model)
    together = encode_views(model.encoder, views)
    expected = [alone.encoder(view) for view in views]
    for ours, truth in zip(together, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))
    assert statistics(model)[1] == {2}
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), alone.state_dict().values(), strict=True)
    )


def test_it_learns():
    """The losses of 12 images, each of a color, fall from chance, 3 log(12) or more, to half."""
    torch.manual_seed(0)
    model = AMDIM.over(BackboneEncoder(Maps(), 32, 16), n_classes=3)
    images = torch.randn(12, 3, 1, 1)
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        views = images + 0.1 * torch.randn(2, 12, 3, 32, 32)
        output = model(*views)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append((output.loss - output.lgt_reg).item())
    assert losses[0] > 3 * math.log(12)
    assert losses[-1] < losses[0] / 2
    assert model.evaluator(output.r1_x1).logits_linear.shape == (12, 3)


@pytest.mark.parametrize("split", [*SPLITS, (4, 1)])
def test_cached_gradients_are_those_of_the_whole_batch(split):
    """With running statistics; in training each micro-batch has its own."""
    (model, loss), (whole, truth) = both(*split, split[:1], make=make_over, frozen=True)
    assert abs(loss - truth) <= 1e-12 * truth
    assert distance(gradients(model), gradients(whole)) <= 1e-11


@pytest.mark.parametrize("options", [{}, {"components": 2}, {"dropout": 0.3}])
def test_statistics_and_draws_of_micro_batches(options):
    (model, loss), (expected, truth) = both(5, 3, (2, 3), make=make_over, **options)
    assert abs(loss - truth) <= 1e-12 * truth
    assert distance(gradients(model), gradients(expected)) <= 1e-11
    (found, counts), (true, true_counts) = statistics(model), statistics(expected)
    assert counts == true_counts == {4}
    assert all(torch.equal(found[name], true[name]) for name in true)


def test_a_traced_network_is_in_training_again_after_encode():
    """torchvision's has a graph for each mode, which train() alone exchanges."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 5, 4, 1), nn.Sequential(nn.ReLU(), nn.Identity()))
    network.register_module("2", Dropped())
    encoder = BackboneEncoder(create_feature_extractor(network, ["2"]), 32, 6)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(encode(encoder, images, None), encode(encoder, images, None))
    assert all(part.training for part in encoder.modules())
    assert not torch.equal(encoder.network(images)["2"], encoder.network(images)["2"])


class Dropped(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([64, 32, 16, 8, 4], (2, 3)),  # a ResNet at 128 px
        ([32, 16, 8, 4, 2], (1, 2)),
        ([16, 8, 4, 2, 1], (0, 1)),
        ([8, 4, 2, 1], (0, 0)),
        ([8, 8, 8], (0, 1)),  # blocks of a ViT
        ([8, 8], (0, 0)),
        ([7], (0, 0)),
        ([16, 6, 5], (0, 1)),
        ([7, 5], (0, 0)),
        ([4, 7], (1, 1)),
    ],
)
def test_which_maps_are_taken(sides, expected):
    assert _chosen(sides, 128) == expected


@pytest.mark.parametrize("sides", [[], [4], [6, 5], [6, 4], [5]])
def test_small_maps_are_refused(sides):
    with pytest.raises(ValueError, match=r"maps of 32 px images are .*; one must be 5x5 or more"):
        _chosen(sides, 32)


class Given(nn.Module):
    """Gives whatever ``make`` makes of the images cut to 8x8."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(F.avg_pool2d(x, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: {"map": x},
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: (x.flatten(2).transpose(1, 2),),
        lambda x: [torch.cat((x.sum((2, 3))[:, None], x.flatten(2).transpose(1, 2)), 1)],
    ],
    ids=["dict", "channels last", "tokens", "tokens after a class token"],
)
def test_layouts_of_maps(make):
    encoders = []
    for given in (make, lambda x: x):
        torch.manual_seed(0)
        encoders.append(BackboneEncoder(Given(given), 32, 6))
    images = torch.randn(3, 3, 32, 32)
    for ours, truth in zip(*(encoder(images) for encoder in encoders), strict=True):
        torch.testing.assert_close(ours, truth)
        assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: x[..., :7], r"of shape \[1, 3, 8, 7\]; each must be a square map"),
        (lambda x: x.flatten(2)[..., :63].transpose(1, 2), r"of shape \[1, 63, 3\]"),
        (lambda x: [x, None], "of type NoneType"),
        (lambda x: 3, "of type int"),
    ],
)
def test_other_results_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        BackboneEncoder(Given(make), 32, 6)


def test_a_vit_learns_from_its_tokens():
    torch.manual_seed(0)
    vit = VisionTransformer(32, 4, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16)
    layers = [f"encoder.layers.encoder_layer_{index}" for index in range(3)]
    encoder = BackboneEncoder(create_feature_extractor(vit, layers), 32, 6)
    assert (encoder._map_7, encoder._map_5) == (0, 1)
    AMDIM.over(encoder)(*torch.randn(2, 4, 3, 32, 32)).loss.backward()
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_wrong_arguments_and_images():
    for size in (0, 1025, 32.0):
        with pytest.raises(ValueError, match=rf"size is {size}; it must be a whole number from 1"):
            BackboneEncoder(Maps(), size, 6)
    with pytest.raises(ValueError, match="n_rkhs is 0; it must be a whole number, 1 or more"):
        BackboneEncoder(Maps(), 32, 0)
    ours, paper = make_over().encoder, Encoder(32, 3, 12, 1).double()
    for given in (
        torch.zeros(2, 3, 32, 31, dtype=torch.float64),
        torch.zeros(1, 3, 32, 32, dtype=torch.float64),
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(0, 2, 3, 32, 32, dtype=torch.float64),
    ):
        said = []
        for encoder in (ours, paper):
            with pytest.raises((ValueError, TypeError)) as caught:
                encoder(given)
            said.append((type(caught.value), str(caught.value)))
        assert said[0] == said[1]


def test_blocks_of_the_papers_encoder_alone_are_checkpointed():
    with pytest.raises(ValueError, match="checkpoint_blocks is on for a backbone; only the paper"):
        Training(make_over(torch.float32), TINY.__class__("x", checkpoint_blocks=True), 400, seed=0)
    training = Training(make_over(torch.float32), TINY, 400, seed=0)
    assert training.model.encoder.checkpoint_blocks is False


class WithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (WithActivation(6), "WithActivation"),
        (nn.BatchNorm2d(6, momentum=None), "BatchNorm2d"),
        (nn.BatchNorm2d(6, affine=False), "BatchNorm2d"),
        (nn.BatchNorm2d(6, track_running_stats=False), "BatchNorm2d"),
        (nn.BatchNorm3d(6), "BatchNorm3d"),
    ],
)
def test_batchnorms_that_cannot_be_synchronized_are_named(norm, kind):
    network = Maps()
    network.norms[0] = norm
    said = rf"sync_bn is on, but norms.0 is a {kind}; it must be a plain BatchNorm1d or 2d"
    with pytest.raises(ValueError, match=said):
        synchronize_batchnorm(network, "none")
    assert type(network.norms[1]) is nn.BatchNorm2d
