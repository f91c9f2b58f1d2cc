"""The contrastive op in blocks of target images: torch operations only, on any device.

A block of scores is [n, L, S, B]: the locations of its n target images against all sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amdim_fast.nce.clip import (
    clipped,
    shifted_clip,
    write_clipped,
    write_exp_shifted,
    write_grad_negatives,
    write_slope,
)
from amdim_fast.nce.plan import PairingPlan, WorkRule
from amdim_fast.nce.products import packed, product, product_into

# Blocks of scores alive at once: two for work, and the products.
WORK_BLOCKS = 3
# Blocks of this size stay in a CPU's caches; on a GPU fewer, larger launches are faster.
PREFERRED_BLOCK_BYTES = {"cpu": 8 * 2**20}
PREFERRED_GPU_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Pairing:
    """Stacked sources [S, B, D] with the targets [N, L, D] that they share.

    src is contiguous and in the dtype of the scores; trg keeps its own. N = B, unless the targets
    are a slice of the batch; ``image_offset`` then says where the own images are.
    """

    src: Tensor
    trg: Tensor
    clip: float | None
    same_location: bool
    plan: PairingPlan

    @property
    def shifted_clip(self) -> float | None:
        """The clip if scores are in the shifted form, else None."""
        return shifted_clip(self.clip)

    @property
    def stored_per_raw(self) -> float:
        """What a block stores, relative to the raw score: -2 / clip in the shifted form, else 1."""
        return 1.0 if self.shifted_clip is None else -2.0 / self.shifted_clip

    def sizes(self) -> tuple[int, int, int, int]:
        """S, B, L, D."""
        sets, images, width = self.src.shape
        return sets, images, self.trg.shape[1], width

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and one-past-last target image of each block."""
        images = self.trg.shape[0]
        for start in range(0, images, self.plan.block_images):
            yield start, min(start + self.plan.block_images, images)

    def columns(self, start: int, stop: int) -> Tensor:
        """[n * L, D] targets of a block in the dtype of the scores."""
        return self.trg[start:stop].reshape(-1, self.trg.shape[2]).to(self.src.dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores and sums are float32, float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def work_rule(
    dtype: torch.dtype, device: torch.device, width: int, same_location: bool
) -> WorkRule:
    """Bytes a score takes in the work buffers, and kept; width and negatives make no difference."""
    itemsize = compute_dtype(dtype).itemsize
    preferred = PREFERRED_BLOCK_BYTES.get(device.type, PREFERRED_GPU_BLOCK_BYTES)
    return WorkRule(WORK_BLOCKS * itemsize, itemsize, WORK_BLOCKS * preferred)


def _sources(pairing: Pairing, image_offset: int, start: int, stop: int) -> slice:
    """The sources whose own image is one of the targets start .. stop - 1."""
    images = pairing.src.shape[1]
    first = min(max(start - image_offset, 0), images)
    return slice(first, min(max(stop - image_offset, first), images))


def _own(block: Tensor, sources: slice, first: int) -> Tensor:
    """[L, S, n] view of the scores of sources with their own images in a block [n, L, S, B].

    ``first`` is the index, in the block, of the first source's own image.
    """
    count = sources.stop - sources.start
    own = block[first : first + count] if count else block[:0]
    return torch.diagonal(own[..., sources], dim1=0, dim2=3)


def forward(pairing: Pairing, image_offset: int = 0) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Own scores, log-sums over the negatives, mean squared raw scores, and what is kept.

    Args:
        pairing: inputs, src [S, B, D] and trg [N, L, D], and the plan.
        image_offset: the own image of source b is target b + image_offset; if there is no such
            target, its own scores are 0 and every target is a negative.

    Returns:
        score [S, B, L]; neg [S, B, 1], or [S, B, L] for same_location; mean_sq [S]; one flat tensor
        per block if the plan keeps scores, else none.
    """
    sets, images, locations, width = pairing.sizes()
    clip, targets = pairing.shifted_clip, pairing.trg.shape[0]
    src = pairing.src.view(sets * images, width)
    scaled = packed(src * (pairing.stored_per_raw / math.sqrt(width)))
    summed = (0,) if pairing.same_location else (0, 1)
    shape = (locations if pairing.same_location else 1, sets, images)
    neg = src.new_full(shape, -math.inf if clip is None else 0.0)
    raw_own = src.new_zeros((sets, images, locations))
    sum_sq = src.new_zeros(sets)
    kept = []
    if pairing.plan.mode == "keep":
        work = src.new_empty(min(pairing.plan.block_images, targets) * locations * sets * images)

    for start, stop in pairing.blocks():
        stored = product(pairing.columns(start, stop), scaled).view(-1, locations, sets, images)
        sources = _sources(pairing, image_offset, start, stop)
        place = (sources, sources.start + image_offset - start)
        raw_own[:, sources] = _own(stored, *place).permute(1, 2, 0)
        sum_sq += torch.linalg.vector_norm(stored, dim=3).square_().sum(dim=(0, 1))
        block = stored
        if pairing.plan.mode == "keep":
            kept.append(stored.view(-1))
            block = work[: stored.numel()].view_as(stored)
        if clip is not None:
            write_exp_shifted(block, stored, clip)
            _own(block, *place).zero_()
            neg += block.sum(dim=summed).view(shape)
        else:
            write_clipped(block, stored, pairing.clip)
            _own(block, *place).fill_(-math.inf)
            neg = torch.logaddexp(neg, torch.logsumexp(block, dim=summed).view(shape))

    raw_own /= pairing.stored_per_raw
    score = clipped(raw_own, pairing.clip)
    if clip is not None:
        neg = neg.log_().add_(clip)
    count = images * targets * locations * pairing.stored_per_raw**2
    return score, neg.permute(1, 2, 0), sum_sq / count, kept


def backward(
    pairing: Pairing,
    kept: Sequence[Tensor],
    score: Tensor,
    neg: Tensor,
    grad_log_prob: Tensor | None,
    grad_mean_sq: Tensor | None,
    *,
    need_src: bool,
    need_trg: bool,
    image_offset: int = 0,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of src [S, B, D] and trg [N, L, D], or None where not needed.

    Args:
        pairing: inputs and plan of the forward.
        kept: the blocks that the forward kept; if none, scores are computed again.
        score: own scores of the forward.
        neg: log-sums of the forward; over every rank's targets where these are a slice.
        grad_log_prob: upstream [S, B, L], or None.
        grad_mean_sq: upstream [S], or None.
        need_src: whether the gradient of src is wanted.
        need_trg: whether the gradient of trg is wanted.
        image_offset: as in ``forward``.
    """
    sets, images, locations, width = pairing.sizes()
    rows = sets * images
    unit = pairing.src.view(rows, width) * (1.0 / math.sqrt(width))
    scaled = None if kept else packed(unit * pairing.stored_per_raw)
    sources_t = packed(unit.t()) if need_trg else unit
    grad_src = torch.zeros_like(unit) if need_src else None
    grad_trg = pairing.trg.new_empty(pairing.trg.shape) if need_trg else None
    grad_own, weight = row_gradients(pairing, score, neg, grad_log_prob)
    weight_block, neg_block = weight.permute(2, 0, 1), neg.permute(2, 0, 1)
    penalty = unit.new_zeros(sets) if grad_mean_sq is None else grad_mean_sq
    count = images * pairing.trg.shape[0] * locations * pairing.stored_per_raw
    penalty = penalty.view(1, 1, sets, 1) * (2.0 / count)
    largest = min(pairing.plan.block_images, pairing.trg.shape[0]) * locations * rows
    work = unit.new_empty((2, largest))

    for index, (start, stop) in enumerate(pairing.blocks()):
        columns = pairing.columns(start, stop)
        stored = kept[index] if scaled is None else product(columns, scaled)
        stored = stored.view(-1, locations, sets, images)
        grad_raw, scratch = (buffer[: stored.numel()].view_as(stored) for buffer in work)
        write_grad_negatives(grad_raw, scratch, stored, weight_block, neg_block, pairing.clip)
        sources = _sources(pairing, image_offset, start, stop)
        own = _own(grad_raw, sources, sources.start + image_offset - start)
        own.copy_(grad_own[:, sources].permute(2, 0, 1))
        grad_raw.addcmul_(stored, penalty)
        matrix = grad_raw.view(-1, rows)
        if grad_src is not None:
            grad_src += product(matrix.t(), columns.t())
        if grad_trg is not None:
            product_into(grad_trg[start:stop].view(-1, width), matrix, sources_t)
        del stored
    if grad_src is not None:
        grad_src = grad_src.mul_(1.0 / math.sqrt(width)).view(sets, images, width)
    return grad_src, grad_trg


def row_gradients(
    pairing: Pairing, score: Tensor, neg: Tensor, grad_log_prob: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradient of the raw own scores [S, B, L], and the weight of the negatives, shaped as neg."""
    if grad_log_prob is None:
        return torch.zeros_like(score), torch.zeros_like(neg)
    grad_score = grad_log_prob * torch.sigmoid(neg - score)
    weight = -grad_score if pairing.same_location else -grad_score.sum(dim=-1, keepdim=True)
    slope = torch.empty_like(score)
    write_slope(slope, score, pairing.clip)
    return grad_score * slope, weight
