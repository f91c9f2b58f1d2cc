"""Launcher of the contrastive Triton kernels: the same groups and results as ``nce_torch``.

Fused, the kernels multiply themselves and the forward stores sums only; otherwise torch multiplies
one block at a time and the kernels read the products. The gradients of the products are written
once a block in the type of the inputs, and torch multiplies them with sources and targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amdim_fast.kernels import nce_backward as backward_kernels
from amdim_fast.kernels import nce_blocks
from amdim_fast.kernels import nce_forward as forward_kernels
from amdim_fast.kernels import nce_scores as modes
from amdim_fast.ops.half import (
    folded_sources,
    multiply,
    multiply_into,
    row_shifts,
    write_product,
)
from amdim_fast.ops.nce_torch import LOG2_E, Group, row_gradients
from amdim_fast.ops.plan import ROW_UNIT, padded

PROGRAMS_PER_PROCESSOR = 4
COMBINED_ROWS = 128


class Problem(NamedTuple):
    """One group as the kernels take it; ``image_offset`` is of the whole, not of a block."""

    src: Tensor  # [R, D]
    trg: Tensor  # [N, L, D]
    group: Group
    image_offset: int
    blocks: nce_blocks.Blocks

    @property
    def scale(self) -> float:
        """``raw = scale * product``."""
        return 1.0 / math.sqrt(self.src.shape[1])

    @property
    def groups(self) -> int:
        """G: problems that are summed apart, one a location or one in all."""
        return self.trg.shape[1] if self.group.same_location else 1


def _problem(group: Group, image_offset: int) -> Problem:
    sets, images, _, width = group.sizes()
    src = group.src.reshape(sets * images, width)
    src, trg = (x if x.stride(-1) == 1 else x.contiguous() for x in (src, group.trg))
    on_gpu = src.device.type == "cuda"
    capability = torch.cuda.get_device_capability(src.device) if on_gpu else None
    blocks = nce_blocks.choose(capability, src.dtype, width)
    return Problem(src, trg, group, image_offset, blocks)


def forward(group: Group, image_offset: int = 0) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Own scores, log-sums over the negatives, mean squared raw scores, and what is kept.

    Args:
        group: inputs, src [S, B, D] and trg [N, L, D] of one type, and the plan.
        image_offset: source b has own image b + image_offset among the N; if that is outside them,
            its own scores are 0 and every target is a negative.

    Returns:
        pos [S, B, L]; neg [S, B, 1], or [S, B, L] for same_location; mean_sq [S]; the products
        [S, B, padded(N * L)] if the plan keeps them. All float32.
    """
    problem = _problem(group, image_offset)
    sets, images, locations, _ = group.sizes()
    targets, rows, groups = problem.trg.shape[0], sets * images, problem.groups
    fused, keep = problem.blocks.fused, group.plan.mode == "keep"
    tile = problem.blocks.forward if fused else problem.blocks.read_forward
    spans = [(0, targets)] if fused or keep else list(group.blocks())
    strips = [
        _strips(problem, tile, (stop - start) * (locations // groups)) for start, stop in spans
    ]
    total_strips = sum(count for count, _ in strips)
    new: dict[str, Any] = {"dtype": torch.float32, "device": problem.src.device}
    everywhere = targets == images and image_offset == 0
    own = (torch.empty if everywhere else torch.zeros)((rows, locations), **new)
    partials = torch.empty((3, groups, total_strips, rows), **new)
    neg = torch.empty((rows, groups), **new)
    row_squares = torch.empty((groups, sets, images), **new)
    kept = [_products(problem, targets * locations)] if keep else []

    with torch.cuda.device_of(problem.src):
        first_strip = 0
        for (start, stop), (count, tiles) in zip(spans, strips, strict=True):
            columns = (stop - start) * locations
            scores = kept[0] if keep else own
            mode = modes.COMPUTE_AND_STORE if keep else modes.COMPUTE
            if not fused:
                mode = modes.READ
                scores = scores if keep else _products(problem, columns)
                multiply_into(scores[:, :columns], problem.src, group.columns(start, stop).t())
            totals, maxima, squares = partials[:, :, first_strip:]
            forward_kernels.nce_forward[(_cdiv(rows, tile.rows) * count, groups)](
                problem.src,
                problem.trg[start:stop],
                scores,
                own,
                totals,
                maxima,
                squares,
                *_sizes(problem, scores, start, stop),
                total_strips * rows,
                count,
                tiles,
                *_constants(problem),
                **_settings(problem, tile, mode.value, scores),
            )
            first_strip += count
        forward_kernels.nce_combine[(_cdiv(rows, COMBINED_ROWS), groups)](
            *(partials[0], partials[1], partials[2], neg, row_squares),
            *(rows, total_strips, groups, group.clip or 0.0),
            CLIP=_clip_mode(group),
            BLOCK_ROWS=COMBINED_ROWS,
        )
    raw_own = own.mul_(problem.scale).view(sets, images, locations)
    pos = raw_own if group.clip is None else group.clip * torch.tanh(raw_own / group.clip)
    mean_sq = row_squares.sum(dim=(0, 2)) / (images * targets * locations)
    kept = [scores.view(sets, images, -1) for scores in kept]
    return pos, neg.view(sets, images, groups), mean_sq, kept


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
    """Gradients of src [S, B, D], float32, and trg [N, L, D], or None where not needed.

    Args:
        group: inputs and plan of the forward.
        kept: the products the forward kept; if none, they are computed again.
        pos: own scores of the forward.
        neg: log-sums of the forward; of every rank's targets where these are a slice.
        grad_log_prob: upstream [S, B, L], or None.
        grad_mean_sq: upstream [S], or None.
        need_src: whether the gradient of src is wanted.
        need_trg: whether the gradient of trg is wanted.
        image_offset: as in ``forward``.
    """
    problem = _problem(group, image_offset)
    src, trg, blocks = problem.src, problem.trg, problem.blocks
    sets, images, locations, width = group.sizes()
    rows, targets = sets * images, trg.shape[0]
    grad_own, weight = (
        part.reshape(rows, -1) * problem.scale
        for part in row_gradients(group, pos, neg, grad_log_prob)
    )
    penalty = src.new_zeros(sets, dtype=torch.float32) if grad_mean_sq is None else grad_mean_sq
    penalty = penalty * (2.0 * problem.scale**2 / (images * targets * locations))
    penalty = penalty.repeat_interleave(images, output_size=rows)
    shift = None
    if src.dtype == torch.float16:
        shift = row_shifts(src, trg, grad_own, weight, penalty)
        power = torch.exp2(shift)
        grad_own, weight = grad_own * power[:, None], weight * power[:, None]
        penalty = penalty * power
    grad_src = None
    grad_trg = trg.new_empty(trg.shape) if need_trg else None
    factor, folded = folded_sources(src, shift) if need_trg else (None, src)
    largest = min(targets, group.plan.block_images)
    buffer = src.new_empty(rows * padded(largest * locations))
    # Statistics of every row and location do not fit beside a tile's product.
    read = bool(kept) or not blocks.fused or group.same_location
    tile = blocks.read_backward if read else blocks.backward
    everything = kept[0].view(rows, -1) if kept else None

    for start, stop in group.blocks():
        columns = (stop - start) * locations
        grad_rows = buffer[: rows * padded(columns)].view(rows, -1)
        grad_scores = grad_rows[:, :columns]
        trg_columns = group.columns(start, stop)
        if everything is not None:
            scores = everything[:, start * locations :]
        else:
            scores = multiply(src, trg_columns.t()) if read else grad_own
        with torch.cuda.device_of(src):
            backward_kernels.nce_backward[(_cdiv(rows, tile.rows) * _cdiv(columns, tile.columns),)](
                *(src, trg[start:stop], scores, grad_rows, grad_own, weight, neg, penalty),
                *_sizes(problem, scores, start, stop),
                grad_rows.shape[1] // ROW_UNIT,
                *_constants(problem),
                **_settings(problem, tile, (modes.READ if read else modes.COMPUTE).value, scores),
            )
        if need_src:
            part = multiply(grad_scores, trg_columns)
            grad_src = part if grad_src is None else grad_src.add_(part)
        if grad_trg is not None:
            write_product(
                grad_trg[start:stop].view(columns, width), grad_scores.t(), folded, factor
            )
    if grad_src is not None:
        grad_src = grad_src if shift is None else grad_src.mul_(torch.exp2(-shift)[:, None])
        grad_src = grad_src.view(sets, images, width)
    return grad_src, grad_trg


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _strips(problem: Problem, tile: nce_blocks.Tile, columns: int) -> tuple[int, int]:
    """Strips of columns, enough for every multiprocessor, and the tiles in each."""
    device = problem.src.device
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 1
    )
    tiles = _cdiv(columns, tile.columns)
    row_blocks = _cdiv(problem.src.shape[0], tile.rows) * problem.groups
    strips = min(tiles, _cdiv(PROGRAMS_PER_PROCESSOR * processors, row_blocks))
    per_strip = _cdiv(tiles, strips)
    return _cdiv(tiles, per_strip), per_strip


def _clip_mode(group: Group) -> int:
    if group.clip is None:
        return int(modes.NO_CLIP.value)
    return int((modes.TANH if group.shifted_clip is None else modes.SHIFTED).value)


def _products(problem: Problem, columns: int) -> Tensor:
    """[R, padded] float32, to be filled with products; the padding is 0."""
    rows = problem.src.shape[0]
    products = problem.src.new_empty((rows, padded(columns)), dtype=torch.float32)
    products[:, columns:] = 0.0
    return products


def _unit(scores: Tensor) -> int:
    """Entries in which the stride and the width of these products are whole."""
    return math.gcd(ROW_UNIT, scores.stride(0), scores.shape[1])


def _sizes(problem: Problem, scores: Tensor, start: int, stop: int) -> tuple[int, ...]:
    """The arguments named in ``nce_scores.SIZES`` for target images start .. stop - 1."""
    unit = _unit(scores)
    src, trg = problem.src, problem.trg
    images = problem.group.src.shape[1]
    return (
        *(src.shape[0], stop - start, trg.shape[1], images, problem.image_offset - start),
        *(src.shape[1], src.stride(0), trg.stride(0), trg.stride(1)),
        *(scores.stride(0) // unit, scores.shape[1] // unit),
    )


def _constants(problem: Problem) -> tuple[float, float, float]:
    """Scale, steep and depth of the kernels."""
    clip = problem.group.clip
    if clip is None:
        return problem.scale, 0.0, 0.0
    if problem.group.shifted_clip is None:
        return problem.scale, problem.scale / clip, clip
    return problem.scale, 2.0 * LOG2_E * problem.scale / clip, -2.0 * LOG2_E * clip


def _settings(problem: Problem, tile: nce_blocks.Tile, mode: int, scores: Tensor) -> dict[str, Any]:
    """What a kernel is compiled for."""
    src, trg = problem.src, problem.trg
    lengths = (src.shape[1], src.stride(0), trg.stride(0), trg.stride(1))
    block_width = tile.width or 16
    return {
        "SCORES": mode,
        "CLIP": _clip_mode(problem.group),
        "SAME_LOCATION": problem.group.same_location,
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_WIDTH": block_width,
        "GROUP_ROWS": tile.group,
        "WHOLE_WIDTH": src.shape[1] % block_width == 0,
        "ALIGNMENT": math.gcd(16, *lengths),
        "UNIT": _unit(scores),
        "PRECISION": "tf32" if nce_blocks.arithmetic(src.dtype) == "tf32" else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
