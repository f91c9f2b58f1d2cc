"""Stored scores of a block, and what is computed from each of them, in torch operations.

Elementwise work goes through pieces of the block, which stay in the caches of a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.nce.clip import (
    add_exp_,
    log_total,
    shifted_clip,
    write_clipped,
    write_exp_shifted,
    write_grad_negatives,
)
from amdim_fast.nce.pairing import Pairing
from amdim_fast.nce.parts import piece_images


class Block(NamedTuple):
    """Scores of some target images with some source rows.

    Attributes:
        pairing: of the rows.
        stored: [n * L, C], as ``torch_passes`` stores them.
        first_row: of the block, in the pairing.
        first_image: of the block, in the targets.
    """

    pairing: Pairing
    stored: Tensor
    first_row: int = 0
    first_image: int = 0

    def cube(self, matrix: Tensor) -> Tensor:
        """[n, L, C] view of a matrix like ``stored``."""
        return matrix.view(-1, self.pairing.shape.locations, matrix.shape[1])

    def pieces(self) -> Iterator[tuple[int, int]]:
        """First and one-past-last target image of pieces."""
        locations, count = self.pairing.shape.locations, self.stored.shape[1]
        images = self.stored.shape[0] // locations
        image_bytes = locations * count * self.stored.element_size()
        step = piece_images(image_bytes, gpu=self.stored.device.type != "cpu")
        for start in range(0, images, step):
            yield start, min(start + step, images)

    def own(self, piece: Tensor, start: int) -> Iterator[tuple[slice, Tensor]]:
        """Rows with own images in a piece [m, L, C], and an [L, m] view of its entries for them.

        Rows are relative to the block's first; ``start`` is the piece's first image in the block.
        """
        images, count, first_row = self.pairing.shape.images, piece.shape[2], self.first_row
        before = start + self.first_image - self.pairing.image_offset
        for first_set in range(first_row // images * images, first_row + count, images):
            # Of one set: source images that are in the block and whose own images are in the piece.
            low = max(first_row - first_set, before, 0)
            high = min(first_row + count - first_set, before + piece.shape[0], images)
            if high <= low:
                continue
            here = slice(first_set + low - first_row, first_set + high - first_row)
            part = piece[low - before : high - before, :, here]
            yield here, torch.diagonal(part, dim1=0, dim2=2)


class RowTerms(NamedTuple):
    """What makes gradients of raw products from scores, for rows of a block.

    Attributes:
        own: [C, L], of products with own images; the penalty is added to them.
        weight: [C, M], of the softmaxes of negatives.
        neg: [C, M], log-sums over negatives.
        penalty: [C], the weight of each stored score.
    """

    own: Tensor
    weight: Tensor
    neg: Tensor
    penalty: Tensor


def sums(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows against all targets: own [C, L], log-sums of negatives [M, C], and squares [C].

    Own are stored scores with the own image, 0 where there is none; squares are sums of stored^2.
    """
    pairing, stored = block.pairing, block.stored
    clip, bound = shifted_clip(pairing.options.clip), pairing.options.clip
    cube = block.cube(stored)
    same = pairing.options.same_location
    summed = (0,) if same else (0, 1)
    total = stored.new_zeros(cube.shape[1:] if same else cube.shape[2:])
    largest = torch.full_like(total, -torch.inf)
    square = stored.new_zeros(stored.shape[1])
    own = stored.new_zeros((stored.shape[1], pairing.shape.locations))
    work = torch.empty_like(cube[slice(*next(block.pieces()))])
    for start, stop in block.pieces():
        piece, scratch = cube[start:stop], work[: stop - start]
        for here, view in block.own(piece, start):
            own[here] = view.t()
        square += torch.mul(piece, piece, out=scratch).sum(dim=(0, 1))
        if clip is not None:
            write_exp_shifted(scratch, piece, clip)
        else:
            write_clipped(scratch, piece, bound)
        for _, view in block.own(scratch, start):
            view.fill_(-torch.inf if clip is None else 0.0)
        if clip is None:
            add_exp_(total, largest, scratch, summed)
        else:
            total += scratch.sum(dim=summed)
    neg = log_total(total, largest) if clip is None else total.log_().add_(clip)
    return own, neg.view(pairing.softmaxes, -1), square


def write_gradients(out: Tensor, block: Block, of: RowTerms) -> None:
    """``out`` [n * L, C], which may be the scores, becomes gradients of the block's products."""
    clip = block.pairing.options.clip
    weight, neg = of.weight.t()[None], of.neg.t()[None]
    cube, into = block.cube(block.stored), block.cube(out)
    work = out.new_empty((2, *cube[slice(*next(block.pieces()))].shape))
    for start, stop in block.pieces():
        piece = cube[start:stop]
        grad, scratch = (part[: stop - start] for part in work)
        write_grad_negatives(grad, scratch, piece, weight, neg, clip)
        for here, view in block.own(grad, start):
            view.copy_(of.own[here].t())
        torch.addcmul(grad, piece, of.penalty, out=into[start:stop])
