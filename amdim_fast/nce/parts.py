"""Memory that a call takes beside scores, and the sizes of the parts that bound it.

In torch operations elementwise work goes through pieces of scores. Products that are scaled before
they are added come in parts of rows; so do float16 limbs of weights.
"""

from __future__ import annotations

import torch

from amdim_fast.nce.way import PairingShape, Way

# On a CPU pieces stay in the caches.
PIECE_BYTES = 2 * 2**20
GPU_PIECE_BYTES = 64 * 2**20
# In the compiled library: sums of scores; later some parts of products, of large ones more.
COMPILED_BYTES = 4 * 2**20
# Products that are scaled before they are added, and numbers that limbs are made of.
SCALED_PART_BYTES = 64 * 2**20
# Rows of weights whose limbs are made at once: fewer do not fill a GPU.
LIMB_ROWS = 2048


def piece_images(image_bytes: int, *, gpu: bool) -> int:
    """Target images of a piece: one at least."""
    return max(1, (GPU_PIECE_BYTES if gpu else PIECE_BYTES) // image_bytes)


def scaled_rows(width: int, *, itemsize: int = 4) -> int:
    """Rows of this width that are scaled at once."""
    return max(1, SCALED_PART_BYTES // (itemsize * width))


def limb_rows(terms: int, width: int) -> int:
    """Rows of weights, with so many terms, whose limbs are multiplied at once."""
    return max(LIMB_ROWS, scaled_rows(max(terms, width)))


def limbs_bytes(rows: int, width: int) -> int:
    """Bytes of limbs of rows, and of their scales."""
    return rows * (4 * width + 8)


def bytes_beside(
    shape: PairingShape, way: Way, rows: int, images: int, *, with_grad: bool = True
) -> int:
    """Most bytes beside the scores of so many rows and target images, and beside their gradients.

    Args:
        shape: of the pairing.
        way: of the call.
        rows: of the chunk or block.
        images: of the chunk or block.
        with_grad: whether the gradients are multiplied with features.
    """
    columns = images * shape.locations
    pieces = _pieces_bytes(way, rows * shape.locations * way.score_itemsize, images)
    if way.limbs:
        added = rows < shape.rows
        found = _in_limbs(rows, columns, shape.width, with_grad=with_grad, added=added)
        # Those of all targets are made before there are scores.
        earlier = min(4 * shape.columns * shape.width, SCALED_PART_BYTES) - 4 * rows * columns
        return max(pieces, found, earlier)
    # Pieces are gone before gradients are copied to their half type, and then the first ones are.
    copied = rows * columns if way.copies_gradients else 0
    pieces = max(0, pieces - copied * way.grad_itemsize)
    if not with_grad:
        return pieces
    return max(pieces, _scaled_bytes(way, rows, columns, shape.width) - copied * way.score_itemsize)


def _pieces_bytes(way: Way, image_bytes: int, images: int) -> int:
    """Bytes of two pieces of scores, which gradients take; a forward takes one."""
    if way.backend == "triton":
        return 0
    if way.compiled:
        return min(COMPILED_BYTES, 2 * image_bytes * images)
    return 2 * image_bytes * min(images, piece_images(image_bytes, gpu=way.gpu))


def _scaled_bytes(way: Way, rows: int, columns: int, width: int) -> int:
    """Bytes of scaled sources [rows, width] and of a part of the columns' product with them."""
    if way.dtype != torch.float16 or not (way.gpu or way.backend == "triton"):
        return 0
    return width * max(6 * rows, 2 * rows + 4 * min(columns, scaled_rows(width)))


def _in_limbs(rows: int, columns: int, width: int, *, with_grad: bool, added: bool) -> int:
    """Bytes of limbs of sources and weights, and of a part; ``added``: to gradients of targets."""
    sources = limbs_bytes(rows, width)
    found = sources + min(max(8 * rows * columns, 4 * rows * width), SCALED_PART_BYTES)
    if with_grad:
        found = max(found, _weights_bytes(rows, columns, width, added=True))
        found = max(found, sources + _weights_bytes(columns, rows, width, added=added))
    return found


def _weights_bytes(rows: int, terms: int, width: int, *, added: bool) -> int:
    """Bytes of limbs of weights [rows, terms], of which they are made, and what they weigh."""
    rows = min(rows, limb_rows(terms, width))
    part = min(4 * rows * terms, SCALED_PART_BYTES)
    return limbs_bytes(rows, terms) + max(part, 4 * rows * width * added)
