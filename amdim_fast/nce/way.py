"""What decides how a call uses its memory: the sizes of a pairing, and the way it is computed."""

from __future__ import annotations

from typing import NamedTuple

import torch

# Rows of products in memory start at multiples of this many entries in the Triton kernels.
ROW_UNIT = 16


class PairingShape(NamedTuple):
    """Sizes of one pairing: S * B sources against N * L targets of width D.

    Attributes:
        sets: S, the drawn set included.
        images: B.
        targets: N, B unless the sources are those of all ranks.
        locations: L.
        width: D.
    """

    sets: int
    images: int
    targets: int
    locations: int
    width: int

    @property
    def rows(self) -> int:
        """S * B."""
        return self.sets * self.images

    @property
    def columns(self) -> int:
        """N * L."""
        return self.targets * self.locations


class Way(NamedTuple):
    """What decides about memory beside the shapes.

    Attributes:
        backend: "torch" or "triton".
        fused: whether kernels multiply without storing products, where nothing is kept.
        gpu: whether the tensors are on a GPU.
        dtype: of the inputs.
        limbs: whether float32 features are multiplied as float16 limbs.
        compiled: whether elementwise work is the compiled library's.
    """

    backend: str
    fused: bool
    gpu: bool
    dtype: torch.dtype
    limbs: bool = False
    compiled: bool = False

    @property
    def score_itemsize(self) -> int:
        """Bytes of a product: float32, float64 for float64 inputs."""
        return 8 if self.dtype == torch.float64 else 4

    @property
    def grad_itemsize(self) -> int:
        """Bytes of the gradient of a product: the type that multiplies it with features."""
        return self.dtype.itemsize if self.gpu or self.backend == "triton" else self.score_itemsize

    @property
    def copies_gradients(self) -> bool:
        """Whether gradients of products, made as float32, are copied to a half type."""
        return self.backend == "torch" and self.gpu and self.dtype.itemsize == 2

    def row_entries(self, columns: int) -> int:
        """Entries in memory of a row of products."""
        return padded(columns) if self.backend == "triton" else columns


def padded(columns: int) -> int:
    """Entries in memory of a row of products in the Triton kernels."""
    return -(-columns // ROW_UNIT) * ROW_UNIT
