"""Networks of torchvision and of timm by name, as modules that give their feature maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from amdim_fast.model.replay import eval_mode
from amdim_fast.optional import require

TIMM = "timm/"
_BLOCKS = 3  # of torchvision's ViT, the last ones, as timm gives them


def check_name(name: str) -> None:
    """Raise unless ``make_network`` knows the name.

    Raises:
        ValueError: it does not; says which names there are. ModuleNotFoundError: the library of
            the name is not installed.
    """
    if name.startswith(TIMM):
        if not _timm(name).is_model(name.removeprefix(TIMM)):
            raise ValueError(
                f"backbone is {name!r}; it must be {TIMM} and one of timm.list_models()"
            )
        return
    models = _torchvision(name)
    if name not in models.list_models(module=models):
        raise ValueError(
            f"backbone is {name!r}; it must be a classification network of torchvision, such as"
            f" resnet50, or {TIMM} and a network of timm, such as {TIMM}vit_small_patch16_224"
        )


def make_network(name: str, size: int, in_channels: int) -> nn.Module:
    """A network with random weights that returns its feature maps, from shallow to deep.

    Layers behind the last map are not in it, so that each parameter has a gradient.

    Args:
        name: of ``torchvision.models.list_models``; or "timm/" and one of ``timm.list_models``.
        size: height and width of the images, pixels.
        in_channels: channels of the images; 3 for torchvision's.

    Returns:
        images -> maps, in a dict or a list. timm chooses the maps of its networks
        (``features_only``). Of torchvision's they are the last of each resolution and, of a ViT,
        the tokens after each of the last three blocks.

    Raises:
        ValueError: the name is unknown, or the network gives no maps of such images.
        ModuleNotFoundError: the library of the name is not installed.
    """
    check_name(name)
    try:
        if name.startswith(TIMM):
            return _timm_network(name, size, in_channels)
        return _torchvision_network(name, size, in_channels)
    # Libraries raise any of these for images or options that a network does not take.
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"backbone {name!r} gives no feature maps of {in_channels} x {size} x {size} images"
            f" ({_reason(error)}); take another network or size"
        ) from error


def _torchvision(name: str) -> Any:
    return require("torchvision", f"backbone {name!r}", "backbones").models


def _timm(name: str) -> Any:
    return require("timm", f"backbone {name!r}", "backbones")


def _timm_network(name: str, size: int, in_channels: int) -> nn.Module:
    timm, own = _timm(name), name.removeprefix(TIMM)
    options: dict[str, Any] = {"in_chans": in_channels}
    if timm.get_pretrained_cfg(own).fixed_input_size:
        options["img_size"] = size
    return timm.create_model(own, pretrained=False, features_only=True, **options)


def _torchvision_network(name: str, size: int, in_channels: int) -> nn.Module:
    models = _torchvision(name)
    if in_channels != 3:
        raise ValueError("torchvision's networks take 3 channels")
    if name.startswith("vit_"):
        network = models.get_model(name, weights=None, image_size=size)
        blocks = [f"encoder.layers.{block}" for block, _ in network.encoder.layers.named_children()]
        layers = blocks[-_BLOCKS:]
    else:
        network = models.get_model(name, weights=None)
        layers = _last_of_each_resolution(network, torch.zeros(1, in_channels, size, size))
    extraction = require("torchvision.models.feature_extraction", f"backbone {name!r}", "backbones")
    return extraction.create_feature_extractor(network, layers)


def _last_of_each_resolution(network: nn.Module, image: Tensor) -> list[str]:
    """Names of the stages of a convolutional network or a Swin transformer.

    They are children of the network, or of a Sequential in it, before the pooling to one vector.
    """
    parents = [("", network)] + [
        (f"{name}.", child)
        for name, child in network.named_children()
        if isinstance(child, nn.Sequential)
    ]
    names = {
        child: prefix + n for prefix, parent in parents for n, child in parent.named_children()
    }
    last: dict[int, str] = {}
    ended = False

    def note(module: nn.Module, _: Any, found: Any) -> None:
        nonlocal ended
        ended = ended or isinstance(module, nn.AdaptiveAvgPool2d)
        if not ended and isinstance(found, Tensor) and found.ndim == 4:
            last[min(found.shape[1:3])] = names[module]  # [B, C, h, w] or [B, h, w, C]

    hooks = [module.register_forward_hook(note) for module in names]
    with eval_mode(network):
        network(image)
    for hook in hooks:
        hook.remove()
    return list(last.values())


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
