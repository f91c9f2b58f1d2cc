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
    projects: bool = False  # the shortcut is a convolution

    @classmethod
    def of(cls, x: Tensor, conv1: Tensor, stride: int, shortcut: Sequence[Tensor]) -> Geometry:
        """Of x [B, C, H, W] and the weights of the first layer."""
        batch, channels, height, width = x.shape
        out_channels, _, kernel, _ = conv1.shape
        sizes = batch, height, width, channels, out_channels, kernel, stride
        return cls(*sizes, projects=bool(shortcut))

    @property
    def is_plain(self) -> bool:
        """Whether the first layer's shortcut is its input, as the others' is."""
        keeps = self.kernel == self.stride == 1 and self.channels == self.out_channels
        return keeps and not self.projects

    @property
    def is_product(self) -> bool:
        """Whether conv1 is one product: its kernel is one pixel or covers the map."""
        covers = self.height == self.width == self.kernel
        return covers or self.kernel == self.stride == 1

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


def columns_of(x: Tensor, geometry: Geometry) -> Tensor:
    """[B H' W', kernel kernel C], a view of x: what conv1 multiplies where it is a product."""
    return rows_of(x) if geometry.kernel == 1 else matrix_of(x)


def map_of_columns(columns: Tensor, geometry: Geometry) -> Tensor:
    """[B, C, H, W] in channels_last, a view of what ``columns_of`` made."""
    return map_of(columns.view(-1, geometry.channels), geometry.height, geometry.width)


def matrix_of(weight: Tensor) -> Tensor:
    """[C', kernel kernel C], a view of a channels_last weight or map [C', C, kernel, kernel]."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def weight_of(matrix: Tensor, kernel: int) -> Tensor:
    """[C', C, kernel, kernel] in channels_last, a view of [C', kernel kernel C]."""
    return matrix.unflatten(1, (kernel, kernel, -1)).permute(0, 3, 1, 2)
