"""The sizes of a row of residual layers, and maps as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """Sizes of the first layer of a row; the others keep its map and its channels."""

    batch: int
    height: int
    width: int
    channels: int
    out_channels: int
    kernel: int
    stride: int

    @classmethod
    def of(cls, x: Tensor, conv1: Sequence[Tensor], stride: int) -> Geometry:
        """Of x [B, C, H, W] and the weights of the first convolutions."""
        batch, channels, height, width = x.shape
        return cls(batch, height, width, channels, conv1[0].shape[0], conv1[0].shape[-1], stride)

    @property
    def is_plain(self) -> bool:
        """Whether the first layer keeps map and channels, as the others do."""
        return self.kernel == 1 and self.stride == 1 and self.channels == self.out_channels

    @property
    def covers(self) -> bool:
        """Whether the kernel covers the map, so that the convolution is one product."""
        return self.height == self.width == self.kernel

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """[B, C', H', W']."""
        height, width = (
            (side - self.kernel) // self.stride + 1 for side in (self.height, self.width)
        )
        return self.batch, self.out_channels, height, width


def new_map(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty channels_last tensor."""
    return torch.empty(
        tuple(shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def rows_of(x: Tensor) -> Tensor:
    """[B H W, C], a view of x [B, C, H, W] in channels_last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def map_of(rows: Tensor, height: int, width: int) -> Tensor:
    """[B, C, height, width] in channels_last, a view of rows [B height width, C]."""
    return rows.unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)


def matrix_of(weight: Tensor) -> Tensor:
    """[C', kernel kernel C], a view of a channels_last weight or map [C', C, kernel, kernel]."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def weight_of(matrix: Tensor, kernel: int) -> Tensor:
    """[C', C, kernel, kernel] in channels_last, a view of [C', kernel kernel C]."""
    return matrix.unflatten(1, (kernel, kernel, -1)).permute(0, 3, 1, 2)
