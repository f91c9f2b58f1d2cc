"""The contrastive op in blocks of target images: torch operations only, any device.

A block of scores is [n, L, S, B]: the locations of its n target images against all sources. With
``v = sigmoid(-2 raw / clip)`` the clipped score is ``clip - 2 clip v``, its derivative
``4 v (1 - v)``, and ``exp(score - clip)`` never overflows, so plain sums replace a running maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amdim_fast.nce.plan import GroupPlan, WorkRule
from amdim_fast.nce.products import packed, product, product_into

# exp(-2 clip) is a normal float32 up to here; beyond, and without a clip, the maximum is tracked.
LARGEST_SHIFTED_CLIP = 43.0
# Blocks of scores alive at once: two of work, and the products.
WORK_BLOCKS = 3
# Blocks of this size stay in the caches of a CPU; on a GPU fewer, larger launches win.
PREFERRED_BLOCK_BYTES = {"cpu": 8 * 2**20}
PREFERRED_GPU_BLOCK_BYTES = 64 * 2**20
# exp2 instead of exp: torch's CPU exp is several times slower where it calls MKL.
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Group:
    """One group of the call: stacked sources [S, B, D] against shared targets [N, L, D].

    src is contiguous and has the dtype of the scores; trg keeps its own. N = B but for a slice of
    the targets, for which ``image_offset`` says where the own images are.
    """

    src: Tensor
    trg: Tensor
    clip: float | None
    same_location: bool
    plan: GroupPlan

    @property
    def shifted_clip(self) -> float | None:
        """The clip where ``exp(score - clip)`` is safe without a maximum, else None."""
        return self.clip if self.clip is not None and self.clip <= LARGEST_SHIFTED_CLIP else None

    @property
    def stored_per_raw(self) -> float:
        """A block stores ``-2 raw / clip``, ready for the sigmoid, or plain raw scores."""
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
        """[n*L, D] targets of a block in the dtype of the scores."""
        return self.trg[start:stop].reshape(-1, self.trg.shape[2]).to(self.src.dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores and sums are float32, float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def work_rule(
    dtype: torch.dtype, device: torch.device, width: int, same_location: bool
) -> WorkRule:
    """Bytes of a score in the work buffers, and kept; the same for every width and negatives."""
    itemsize = compute_dtype(dtype).itemsize
    preferred = PREFERRED_BLOCK_BYTES.get(device.type, PREFERRED_GPU_BLOCK_BYTES)
    return WorkRule(WORK_BLOCKS * itemsize, itemsize, WORK_BLOCKS * preferred)


def _sources(group: Group, image_offset: int, start: int, stop: int) -> slice:
    """The sources whose own image is one of the targets start .. stop - 1."""
    images = group.src.shape[1]
    first = min(max(start - image_offset, 0), images)
    return slice(first, min(max(stop - image_offset, first), images))


def _own(block: Tensor, sources: slice, first: int) -> Tensor:
    """[L, S, n] view of the scores of sources with their own images in a block [n, L, S, B].

    ``first`` is the place in the block of the own image of the first of them.
    """
    count = sources.stop - sources.start
    own = block[first : first + count] if count else block[:0]
    return torch.diagonal(own[..., sources], dim1=0, dim2=3)


def forward(group: Group, image_offset: int = 0) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Own scores, log-sums over the negatives, mean squared raw scores, and what is kept.

    Args:
        group: inputs, src [S, B, D] and trg [N, L, D], and the plan.
        image_offset: source b has own image b + image_offset among the N; if that is outside them,
            its own scores are 0 and every target is a negative.

    Returns:
        pos [S, B, L]; neg [S, B, 1], or [S, B, L] for same_location; mean_sq [S]; one flat tensor
        a block if the plan keeps scores, else none.
    """
    sets, images, locations, width = group.sizes()
    clip, targets = group.shifted_clip, group.trg.shape[0]
    src = group.src.view(sets * images, width)
    scaled = packed(src * (group.stored_per_raw / math.sqrt(width)))
    summed = (0,) if group.same_location else (0, 1)
    shape = (locations if group.same_location else 1, sets, images)
    neg = src.new_full(shape, -math.inf if clip is None else 0.0)
    raw_own = src.new_zeros((sets, images, locations))
    sum_sq = src.new_zeros(sets)
    kept = []
    if group.plan.mode == "keep":
        work = src.new_empty(min(group.plan.block_images, targets) * locations * sets * images)

    for start, stop in group.blocks():
        stored = product(group.columns(start, stop), scaled).view(-1, locations, sets, images)
        sources = _sources(group, image_offset, start, stop)
        place = (sources, sources.start + image_offset - start)
        raw_own[:, sources] = _own(stored, *place).permute(1, 2, 0)
        sum_sq += torch.linalg.vector_norm(stored, dim=3).square_().sum(dim=(0, 1))
        scores = stored
        if group.plan.mode == "keep":
            kept.append(stored.view(-1))
            scores = work[: stored.numel()].view_as(stored)
        if clip is not None:
            torch.sigmoid(stored, out=scores).mul_(-2.0 * clip * LOG2_E).exp2_()
            _own(scores, *place).zero_()
            neg += scores.sum(dim=summed).view(shape)
        else:
            _write_clipped(scores, stored, group.clip)
            _own(scores, *place).fill_(-math.inf)
            neg = torch.logaddexp(neg, torch.logsumexp(scores, dim=summed).view(shape))

    raw_own /= group.stored_per_raw
    pos = raw_own if group.clip is None else group.clip * torch.tanh(raw_own / group.clip)
    if clip is not None:
        neg = neg.log_().add_(clip)
    count = images * targets * locations * group.stored_per_raw**2
    return pos, neg.permute(1, 2, 0), sum_sq / count, kept


def _write_clipped(out: Tensor, raw: Tensor, clip: float | None) -> None:
    if clip is None:
        out.copy_(raw)
    else:
        torch.div(raw, clip, out=out).tanh_().mul_(clip)


def _write_slope(out: Tensor, score: Tensor, clip: float | None) -> None:
    """``out = d score / d raw`` from the clipped score."""
    if clip is None:
        out.fill_(1.0)
    else:
        torch.div(score, clip, out=out).square_().neg_().add_(1.0)


def backward(
    group: Group,
    kept: Sequence[Tensor],
    pos: Tensor,
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
        group: inputs and plan of the forward.
        kept: the blocks the forward kept; if none, scores are computed again.
        pos: own scores of the forward.
        neg: log-sums of the forward; of every rank's targets where these are a slice.
        grad_log_prob: upstream [S, B, L], or None.
        grad_mean_sq: upstream [S], or None.
        need_src: whether the gradient of src is wanted.
        need_trg: whether the gradient of trg is wanted.
        image_offset: as in ``forward``.
    """
    sets, images, locations, width = group.sizes()
    rows = sets * images
    unit = group.src.view(rows, width) * (1.0 / math.sqrt(width))
    scaled = None if kept else packed(unit * group.stored_per_raw)
    sources_t = packed(unit.t()) if need_trg else unit
    grad_src = torch.zeros_like(unit) if need_src else None
    grad_trg = group.trg.new_empty(group.trg.shape) if need_trg else None
    grad_own, weight = row_gradients(group, pos, neg, grad_log_prob)
    penalty = unit.new_zeros(sets) if grad_mean_sq is None else grad_mean_sq
    count = images * group.trg.shape[0] * locations * group.stored_per_raw
    penalty = penalty.view(1, 1, sets, 1) * (2.0 / count)
    largest = min(group.plan.block_images, group.trg.shape[0]) * locations * rows
    work = unit.new_empty((2, largest))

    for index, (start, stop) in enumerate(group.blocks()):
        columns = group.columns(start, stop)
        stored = kept[index] if scaled is None else product(columns, scaled)
        stored = stored.view(-1, locations, sets, images)
        grad_raw, scratch = (buffer[: stored.numel()].view_as(stored) for buffer in work)
        _write_grad_negatives(group, grad_raw, scratch, stored, weight, neg)
        sources = _sources(group, image_offset, start, stop)
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
    group: Group, pos: Tensor, neg: Tensor, grad_log_prob: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradient of the raw own scores [S, B, L], and the weight of the negatives, shaped as neg."""
    if grad_log_prob is None:
        return torch.zeros_like(pos), torch.zeros_like(neg)
    grad_pos = grad_log_prob * torch.sigmoid(neg - pos)
    weight = -grad_pos if group.same_location else -grad_pos.sum(dim=-1, keepdim=True)
    slope = torch.empty_like(pos)
    _write_slope(slope, pos, group.clip)
    return grad_pos * slope, weight


def _write_grad_negatives(
    group: Group, out: Tensor, scratch: Tensor, stored: Tensor, weight: Tensor, neg: Tensor
) -> None:
    """``out = weight * exp(score - neg) * d score / d raw``; the own entries are left undefined.

    stored, out and scratch are [n, L, S, B]; weight and neg [S, B, 1] or [S, B, L].
    """
    weight, neg = weight.permute(2, 0, 1), neg.permute(2, 0, 1)
    clip = group.shifted_clip
    if clip is not None:
        torch.sigmoid(stored, out=scratch)
        torch.addcmul(scratch, scratch, scratch, value=-1.0, out=out)
        exponent = LOG2_E * (clip - neg)
        torch.add(exponent, scratch, alpha=-2.0 * clip * LOG2_E, out=scratch).exp2_()
        out.mul_(scratch).mul_(4.0 * weight)
    else:
        _write_clipped(scratch, stored, group.clip)
        _write_slope(out, scratch, group.clip)
        scratch.sub_(neg).exp_()
        out.mul_(scratch).mul_(weight)
