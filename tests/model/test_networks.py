"""Networks by name, from torchvision and timm: which maps they give, and names that are wrong."""

import sys

import pytest
import torch

from amdim_fast import AMDIM, BackboneEncoder
from amdim_fast.model.networks import check_name, make_network


@pytest.mark.parametrize(
    ("name", "size", "names", "shapes"),
    [
        (
            "resnet18",
            64,
            ["relu", "layer1", "layer2", "layer3", "layer4"],
            [(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)],
        ),
        (
            "mobilenet_v3_small",
            32,
            ["features.0", "features.1", "features.3", "features.8", "features"],
            [(16, 16), (16, 8), (24, 4), (48, 2), (576, 1)],
        ),
        (
            "squeezenet1_1",
            64,
            ["features.1", "features.4", "features.7", "classifier.2"],
            [(64, 31), (128, 15), (256, 7), (1000, 3)],
        ),
    ],
)
def test_maps_of_torchvisions_networks(name, size, names, shapes):
    network = make_network(name, size, 3)
    found = network(torch.zeros(2, 3, size, size))
    assert list(found) == names
    assert [(part.shape[1], part.shape[2]) for part in found.values()] == shapes
    assert network.training


def test_every_parameter_of_a_named_network_learns():
    """No classifier is left, which processes that average gradients would wait for."""
    torch.manual_seed(0)
    model = AMDIM.over(BackboneEncoder("mobilenet_v3_small", 32, 16))
    model(*torch.randn(2, 4, 3, 32, 32)).loss.backward()
    assert all(weight.grad is not None for weight in model.encoder.parameters())
    assert model.hyperparams["backbone"] == "mobilenet_v3_small"


def test_a_vit_of_timm_gives_its_tokens_as_a_grid():
    pytest.importorskip("timm")
    torch.manual_seed(0)
    encoder = BackboneEncoder("timm/test_vit", 128, 16, in_channels=1)
    found = encoder.network(torch.zeros(1, 1, 128, 128))
    assert [tuple(part.shape) for part in found] == [(1, 64, 8, 8)] * 3
    AMDIM.over(encoder)(*torch.randn(2, 3, 1, 128, 128)).loss.backward()
    assert all(weight.grad is not None for weight in encoder.parameters())
    with pytest.raises(ValueError, match=r"backbone is 'timm/vit'; it must be timm/ and one of"):
        check_name("timm/vit")


@pytest.mark.parametrize(
    "name", ["resnet5", "", "fcn_resnet50", "Resnet18", "hf-hub:timm/resnet18"]
)
def test_unknown_names(name):
    said = f"backbone is {name!r}; it must be a classification network of torchvision, such as"
    for use in (check_name, lambda given: BackboneEncoder(given, 32, 8)):
        with pytest.raises(ValueError, match=said):
            use(name)


@pytest.mark.parametrize(
    ("name", "size", "channels", "said"),
    [
        ("maxvit_t", 32, 3, r"backbone 'maxvit_t' gives no feature maps of 3 x 32 x 32 images \("),
        ("resnet18", 32, 1, r"\(torchvision's networks take 3 channels\); take another"),
        ("resnet18", 8, 3, r"maps of 8 px images are 4x4, 2x2, 1x1, from shallow to deep; one"),
    ],
)
def test_images_that_a_network_does_not_take(name, size, channels, said):
    with pytest.raises(ValueError, match=said):
        BackboneEncoder(name, size, 8, channels)


@pytest.mark.parametrize(("name", "library"), [("resnet18", "torchvision"), ("timm/x", "timm")])
def test_a_library_that_is_missing_is_named(monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    said = rf"backbone '{name}' needs {library}, which .*; pip install 'amdim-fast\[backbones\]'"
    with pytest.raises(ModuleNotFoundError, match=said):
        check_name(name)
