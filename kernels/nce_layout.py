"""Which layouts of src [R, D] and trg [N, L, D] the kernels load, by pointer or descriptor."""

from __future__ import annotations

from amdim_fast.kernels.nce_tiles import Tile
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Features are loaded 16 bytes at a time; strides are passed in units of 8 entries.
FEATURE_UNIT = 8
POINTER_BYTES = 16
# The first compute capability with tensor descriptors.
DESCRIPTOR_CAPABILITY = (9, 0)


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of all but the last dimension; 0 for a dimension of size 1, whatever torch says."""
    pairs = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    return tuple(stride if size > 1 else 0 for size, stride in pairs)


def loadable(tensor: Tensor) -> bool:
    """Whether the kernels can load ``tensor`` [..., D] without a copy.

    A contiguous tensor whose D is a multiple of 8 always is.
    """
    units = (tensor.shape[-1], *strides(tensor))
    contiguous = tensor.shape[-1] == 1 or tensor.stride(-1) == 1
    whole = all(length % FEATURE_UNIT == 0 for length in units)
    return contiguous and whole and tensor.data_ptr() % POINTER_BYTES == 0


def descriptor_obstacle(trg: Tensor, tile: Tile, capability: tuple[int, int] | None) -> str | None:
    """Why loadable features are read through pointers, or None where descriptors apply.

    Args:
        trg: targets [N, L, D]; a descriptor sees them as one matrix [N * L, D].
        tile: the kernel's, which says whether to use descriptors.
        capability: of the GPU; None in the interpreter, which has descriptors.
    """
    if not tile.descriptors:
        return "the tile table uses pointers here"
    if capability is not None and capability < DESCRIPTOR_CAPABILITY:
        return f"compute capability {'.'.join(map(str, capability))} has no descriptors"
    if _row_stride(trg) is None:
        return "the targets are not rows of one matrix"
    return None


def descriptors(src: Tensor, trg: Tensor, tile: Tile) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Descriptors of contiguous src [R, D] and of trg as [N * L, D]; loads out of bounds give 0."""
    rows, width = src.shape
    columns, stride = trg.shape[0] * trg.shape[1], _row_stride(trg)
    return (
        TensorDescriptor(src, [rows, width], [width, 1], [tile.rows, tile.width]),
        TensorDescriptor(trg, [columns, width], [stride, 1], [tile.columns, tile.width]),
    )


def _row_stride(trg: Tensor) -> int | None:
    """Row stride of trg as a matrix [N * L, D], or None if it is not one."""
    images, locations, width = trg.shape
    image, location = strides(trg)
    if images * locations == 1:
        return width
    if images > 1 and locations > 1 and image != locations * location:
        return None
    stride = location if locations > 1 else image
    return stride if stride >= width else None
