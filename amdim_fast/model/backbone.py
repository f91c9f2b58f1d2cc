"""AMDIM's features from another network: its feature maps, pooled and embedded.

Source: arXiv:1906.00910, section 4.1, for the heads; the network is anyone's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amdim_fast.checks import whole_number
from amdim_fast.model.encoder import Encoder, EncoderOutput, RKHSHead, check_images
from amdim_fast.model.networks import make_network
from amdim_fast.model.replay import eval_mode

LARGEST_SIZE = 1024  # pixels


class BackboneEncoder(nn.Module):
    """An encoder for ``AMDIM.over``, with the features of ``Encoder`` from another network.

    Of the network's maps, from shallow to deep: r1 is of the last. r5 is of the deepest one before
    it with 5x5 locations or more, and r7 of the deepest one before that with 7x7 or more; where no
    map before is large enough, two of them are of the same map. So local features are of layers
    that see less than the global one does, as in the paper, and no map is enlarged, which would
    make neighbouring locations equal. Maps become 1x1, 5x5 and 7x7 by the mean over windows
    of one size, at regular places, which cover the map. Each then has a head of its own,
    ``RKHSHead`` with BatchNorm inside.

    Args:
        network: images -> maps in a list, tuple or dict, or one map; each is [B, C, h, h],
            [B, h, h, C] or tokens [B, h * h, C] in rows, with or without a class token before
            them. Models of timm with ``features_only=True`` and of torchvision's
            ``create_feature_extractor`` are such. Or the name of a network, with random weights:
            see ``make_network``.
        size: height and width of the images, pixels, at most 1024.
        n_rkhs: D, width of the features.
        in_channels: channels of the images.

    Raises:
        ValueError: an argument is out of range, or a map is missing or not square; says which.
        ModuleNotFoundError: the library of a named network is not installed.

    Attributes:
        backbone: the network's name; None if it was given as a module, which no file can rebuild.
        checkpoint_blocks: False; it is for the blocks of ``Encoder``.

    The network and the heads see one view after the other, so that BatchNorms of any kind take and
    keep statistics view by view. The constructor encodes one image, in evaluation mode, to learn
    the sizes of the maps. Parameters are channels_last.
    """

    takes_views = True

    def __init__(
        self, network: nn.Module | str, size: int, n_rkhs: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        whole_number("size", size, most=LARGEST_SIZE)
        whole_number("n_rkhs", n_rkhs)
        whole_number("in_channels", in_channels)
        self.size, self.n_rkhs, self.in_channels = size, n_rkhs, in_channels
        self.backbone = network if isinstance(network, str) else None
        if isinstance(network, str):
            network = make_network(network, size, in_channels)
        self.network = network
        maps = _maps(self._try())
        self._map_7, self._map_5 = _chosen([found.shape[-1] for found in maps], size)
        widths = [maps[index].shape[1] for index in (-1, self._map_5, self._map_7)]
        self.rkhs_block_1, self.rkhs_block_5, self.rkhs_block_7 = (
            RKHSHead(width, n_rkhs, use_bn=True) for width in widths
        )
        self.to(memory_format=torch.channels_last)
        weight = next(self.network.parameters(), None)
        if weight is not None:
            for head in (self.rkhs_block_1, self.rkhs_block_5, self.rkhs_block_7):
                head.to(weight.device, weight.dtype)

    def _try(self) -> Any:
        """What the network gives for an image."""
        weight = next(self.network.parameters(), torch.zeros(()))
        image = weight.new_zeros(1, self.in_channels, self.size, self.size)
        with eval_mode(self.network):
            return self.network(image)

    @property
    def checkpoint_blocks(self) -> bool:
        """Always False; to set it is an error."""
        return False

    @checkpoint_blocks.setter
    def checkpoint_blocks(self, on: bool) -> None:
        if on:
            raise ValueError(
                "checkpoint_blocks is on for a backbone; only the paper's encoder has such blocks:"
                " turn it off, or set micro_batch to save memory"
            )

    def backend_for(self, dtype: torch.dtype, device: torch.device) -> str:
        """What runs the layers: always "torch"."""
        return "torch"

    def forward(self, x: Tensor) -> EncoderOutput | tuple[EncoderOutput, ...]:
        """Encode a batch, or several views of one; arguments, results and errors are ``Encoder``'s.

        Args:
            x: [B, in_channels, size, size], or V views, [V, B, in_channels, size, size].

        Returns:
            r1 [B, D, 1, 1], r5 [B, D, 5, 5] and r7 [B, D, 7, 7], channels_last; a tuple of V such
            results for V views.
        """
        check_images(self, x, training=self.rkhs_block_5.bn_out.bn.training)
        if x.ndim != 5:
            return self._encode(x)
        return tuple(self._encode(view) for view in x.unbind(0))

    def _encode(self, x: Tensor) -> EncoderOutput:
        maps = _maps(self.network(x.contiguous(memory_format=torch.channels_last)))
        return EncoderOutput(
            self.rkhs_block_1(_pooled(maps[-1], 1)),
            self.rkhs_block_5(_pooled(maps[self._map_5], 5)),
            self.rkhs_block_7(_pooled(maps[self._map_7], 7)),
        )


AnyEncoder = Encoder | BackboneEncoder


def _maps(found: Any) -> list[Tensor]:
    """Each map as [B, C, h, h], from shallow to deep."""
    if isinstance(found, Mapping):
        found = found.values()
    parts = [found] if isinstance(found, Tensor) or not isinstance(found, Iterable) else list(found)
    return [_as_map(part) for part in parts]


def _as_map(found: Any) -> Tensor:
    """Image-like [B, C, h, h], [B, h, h, C], or tokens [B, h * h, C] after at most one other."""
    shape = tuple(found.shape) if isinstance(found, Tensor) else ()
    if len(shape) == 4 and shape[2] == shape[3]:
        return found
    if len(shape) == 4 and shape[1] == shape[2]:
        return found.permute(0, 3, 1, 2)
    if len(shape) == 3:
        side = isqrt(shape[1])
        if side and shape[1] - side**2 in (0, 1):
            return found[:, shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))
    what = f"shape {list(shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
    raise ValueError(
        f"the network gives a result of {what}; each must be a square map [B, C, h, h] or"
        " [B, h, h, C], or tokens [B, h * h, C] with at most a class token before them"
    )


def _chosen(sides: list[int], size: int) -> tuple[int, int]:
    """Places of the maps for r7 and r5."""

    def deepest(least: int, before: int) -> int | None:
        large = [index for index in range(before) if sides[index] >= least]
        return large[-1] if large else None

    last = len(sides) - 1
    for_5 = deepest(5, last)
    if for_5 is None:
        for_5 = deepest(5, last + 1)
    if for_5 is not None:
        for_7 = deepest(7, for_5)
        if for_7 is None:
            for_7 = deepest(7, for_5 + 1)
        if for_7 is not None:
            return for_7, for_5
    shown = ", ".join(f"{side}x{side}" for side in sides) or "none"
    raise ValueError(
        f"the network's maps of {size} px images are {shown}, from shallow to deep; one must be 5x5"
        " or more and it or one before it 7x7: give maps of earlier layers, or larger images"
    )


def _pooled(x: Tensor, side: int) -> Tensor:
    """[B, C, side, side]: means over windows of one size, deterministic on a GPU too."""
    stride = x.shape[-1] // side
    return F.avg_pool2d(x, x.shape[-1] - (side - 1) * stride, stride)
