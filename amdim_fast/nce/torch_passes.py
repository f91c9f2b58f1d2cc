"""The contrastive op's passes in torch operations, for any device and type.

A block of scores is [N * L, C]: target locations against some source rows. It holds stored scores,
``-2 raw / clip`` in the shifted form of ``clip`` and raw ones otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from amdim_fast.nce import compiled_blocks, operands, score_blocks
from amdim_fast.nce.clip import clipped, shifted_clip, write_slope
from amdim_fast.nce.operands import Operand, operand, row_count, write_products
from amdim_fast.nce.pairing import Options, Pairing, Results, Upstream
from amdim_fast.nce.plan import KEEP, PairingPlan
from amdim_fast.nce.products import (
    columns_product_into,
    packed,
    product_into,
)
from amdim_fast.nce.score_blocks import Block, RowTerms
from amdim_fast.nce.way import Way

# Exponent of the largest gradient of a product in float16, and the largest shift of a row.
HALF_EXPONENT = 15
LARGEST_SHIFT = 100


def way_of(device: torch.device, dtype: torch.dtype, width: int, options: Options) -> Way:
    """What decides about memory."""
    compiled = compiled_blocks.why_not(device, compute_dtype(dtype), options.clip) is None
    return Way("torch", False, device.type == "cuda", dtype, options.limbs, compiled)


def describe(
    way: Way, device: torch.device, width: int, plans: Sequence[PairingPlan], options: Options
) -> tuple[str, ...]:
    """What computes from each score, as ``Plan.kernels`` reports it."""
    why = compiled_blocks.why_not(device, compute_dtype(way.dtype), options.clip)
    text = "elementwise work in C++" if why is None else f"elementwise work by torch, since {why}"
    return (text,) * len(plans)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores and sums are float32, float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def stack_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type of stacked sources: half types are converted on a CPU."""
    return dtype if device.type == "cuda" else compute_dtype(dtype)


def stack(src: Tensor, trg: Tensor | None, picks: Tensor | None) -> Tensor:
    """[S * B, D] given sources, then those at ``picks`` of ``trg`` [B, L, D], if any."""
    width = src.shape[2]
    dtype = stack_dtype(src.device, src.dtype)
    rows = src.reshape(-1, width).to(dtype)
    if trg is None or picks is None:
        return rows.contiguous()
    drawn = trg.gather(1, picks[:, None, None].expand(-1, 1, width))
    return torch.cat([rows, drawn[:, 0].to(dtype)])


def unit(options: Options) -> float:
    """What a block stores, relative to the raw score."""
    shifted = shifted_clip(options.clip)
    return 1.0 if shifted is None else -2.0 / shifted


def scores(pairing: Pairing, first_row: int, rows: int, trg: Operand) -> Tensor:
    """[N * L, C] stored scores of some rows against targets [N * L, D]."""
    src = pairing.src[first_row : first_row + rows]
    factor = pairing.scale * unit(pairing.options)
    dtype = compute_dtype(src.dtype)
    out = _room(pairing, (row_count(trg), rows), dtype, kept=pairing.plan.mode == KEEP)
    if not isinstance(trg, Tensor) or src.device.type != "cpu":
        write_products(out, trg, operand(src, in_limbs=pairing.options.limbs))
        out.mul_(factor)
    elif src.dtype == trg.dtype:
        product_into(out, trg, packed(src * factor, len(trg)))
    else:
        write_products(out, trg, src * factor)
    return out


def _room(pairing: Pairing, shape: tuple[int, ...], dtype: torch.dtype, *, kept: bool) -> Tensor:
    """Memory for scores or their gradients, until the pairing's next; its own where it is kept."""
    if kept or pairing.scratch is None or pairing.src.device.type != "cpu":
        return pairing.src.new_empty(shape, dtype=dtype)
    return pairing.scratch.take(shape)


def block_shape(rows: int, columns: int) -> tuple[int, int]:
    """Shape of the scores of rows against columns."""
    return columns, rows


def columns_of(stored: Tensor, first: int, last: int) -> Tensor:
    """The scores of target locations ``first`` .. ``last - 1``, without a copy."""
    return stored[first:last]


def _blocks(stored: Tensor, options: Options) -> ModuleType:
    """The module of elementwise work."""
    why_not = compiled_blocks.why_not(stored.device, stored.dtype, options.clip)
    return compiled_blocks if why_not is None else score_blocks


def statistics(pairing: Pairing, results: Results, stored: Tensor, first_row: int) -> None:
    """Write the results of the rows of ``stored`` [N * L, C]."""
    options, count = pairing.options, stored.shape[1]
    own, neg, square = _blocks(stored, options).sums(Block(pairing, stored, first_row))
    own /= unit(options)
    rows = slice(first_row, first_row + count)
    score = clipped(own, options.clip)
    log_prob = log_probability(score, neg.t())
    pairing.own(results.score)[rows] = score
    pairing.sums(results.neg)[rows] = neg.t()
    pairing.own(results.log_prob)[rows] = log_prob
    pairing.rows(results.row_loss)[rows] = log_prob.sum(1).mul_(-pairing.own_share)
    pairing.rows(results.row_square)[rows] = square * (pairing.square_share / unit(options) ** 2)


def log_probability(score: Tensor, neg: Tensor) -> Tensor:
    """-log(1 + exp(neg - score)); 0 without negatives, where neg is -inf."""
    return -torch.logaddexp(neg - score, torch.zeros_like(score))


def gradients(
    pairing: Pairing,
    results: Results,
    upstream: Upstream,
    stored: Tensor,
    *,
    first_row: int,
    first_image: int,
    images: int,
    overwrite: bool,
    with_statistics: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the products of some rows and target images, and exponents of their scales.

    Args:
        pairing: of the rows.
        results: those of all rows.
        upstream: gradients of the results.
        stored: [n * L, C] scores.
        first_row: of the block, in the pairing.
        first_image: of the block, in the targets.
        images: of the block.
        overwrite: whether the memory of the scores may hold their gradients.
        with_statistics: whether to write the results of these rows first.

    Returns:
        [C, n * L] in the type that products take; exponents [C] of float16's powers of two.
    """
    if with_statistics:
        statistics(pairing, results, stored, first_row)
    options = pairing.options
    rows = slice(first_row, first_row + stored.shape[1])
    grad_own, weight, penalty = row_gradients(pairing, results, upstream, rows)
    neg = pairing.sums(results.neg)[rows]
    matrix = stored if overwrite else _room(pairing, stored.shape, stored.dtype, kept=False)
    block = Block(pairing, stored, first_row, first_image)
    of = RowTerms(grad_own, weight, neg, penalty / unit(options))
    _blocks(stored, options).write_gradients(matrix, block, of)
    if pairing.src.dtype == matrix.dtype:
        return matrix.t(), None
    if pairing.src.dtype != torch.float16:
        return matrix.to(pairing.src.dtype).t(), None
    largest = torch.linalg.vector_norm(matrix, torch.inf, dim=0)
    exponent = (HALF_EXPONENT - torch.frexp(largest).exponent.float()).clamp(
        -LARGEST_SHIFT, LARGEST_SHIFT
    )
    half = torch.empty_like(matrix, dtype=torch.float16)
    return torch.mul(matrix, torch.exp2(exponent), out=half).t(), exponent


def row_gradients(
    pairing: Pairing, results: Results, upstream: Upstream, rows: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Of some rows: gradients of own products [C, L], weight of negatives [C, M], penalty [C].

    The factor 1 / sqrt(D) of the products is in them; the penalty multiplies the raw score.
    """
    shape, options = pairing.shape, pairing.options
    score, neg = pairing.own(results.score)[rows], pairing.sums(results.neg)[rows]
    of_loss = of_square = torch.zeros(shape.sets, dtype=score.dtype, device=score.device)
    if upstream.of_objective:
        of_loss, of_square = of_loss + options.loss_weight, of_square + options.mean_sq_weight
    if upstream.totals is not None:
        first, parts = pairing.first_set, options.parts
        places = [(first + index) % parts for index in range(shape.sets)]
        of_loss = of_loss + options.loss_weight * torch.stack([upstream.totals[p] for p in places])
        of_square = of_square + options.mean_sq_weight * upstream.totals[parts]
    if upstream.loss is not None:
        of_loss = of_loss + pairing.sets(upstream.loss)
    if upstream.mean_sq is not None:
        of_square = of_square + pairing.sets(upstream.mean_sq)
    set_of = torch.arange(rows.start, rows.stop, device=score.device) // shape.images
    of_log_prob = (-pairing.own_share * of_loss)[set_of, None]
    if upstream.log_prob is not None:
        of_log_prob = of_log_prob + pairing.own(upstream.log_prob)[rows]
    of_score = of_log_prob * torch.sigmoid(neg - score) * pairing.scale
    weight = -of_score if options.same_location else -of_score.sum(dim=1, keepdim=True)
    slope = torch.empty_like(score)
    write_slope(slope, score, options.clip)
    penalty = (of_square * (2.0 * pairing.square_share * pairing.scale))[set_of]
    return of_score * slope, weight, penalty


def sum_rows(
    results: Results, options: Options, images: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [sets], mean_sq [sets], totals [parts + 1] and their sum, a scalar."""
    loss = results.row_loss.view(-1, images).sum(1)
    mean_sq = results.row_square.view(-1, images).sum(1)
    totals = totals_of(loss, mean_sq, options)
    return loss, mean_sq, totals, totals.sum()


def totals_of(loss: Tensor, mean_sq: Tensor, options: Options) -> Tensor:
    """[parts + 1] weighted losses of each part, and the weighted mean_sq of all sets."""
    of_parts = options.loss_weight * loss.view(-1, options.parts).sum(0)
    return torch.cat([of_parts, options.mean_sq_weight * mean_sq.sum()[None]])


def write_source_gradient(
    out: Tensor, grads: Tensor, exponents: Tensor | None, trg: Operand, *, add: bool
) -> None:
    """As ``operands.write_source_gradient``, by the faster library."""
    if isinstance(trg, Tensor) and exponents is None and grads.dtype == trg.dtype:
        columns_product_into(out, grads.t(), trg, add=add)
    else:
        operands.write_source_gradient(out, grads, exponents, trg, add=add)


def write_target_gradient(
    out: Tensor, grads: Tensor, exponents: Tensor | None, src: Operand, *, add: bool
) -> None:
    """As ``operands.write_target_gradient``, by the faster library."""
    if isinstance(src, Tensor) and exponents is None and grads.dtype == src.dtype:
        product_into(out, grads.t(), packed(src.t(), len(out)), add=add)
    else:
        operands.write_target_gradient(out, grads, exponents, src, add=add)


def finish_sources(
    part: Tensor, out: Tensor | None, trg: Tensor | None, picks: Tensor | None
) -> None:
    """Write the gradients of given sources, and add those of drawn ones to the targets' gradients.

    Args:
        part: [S * B, D] gradients of the given sources and, after them, of the B drawn ones if
            there are any.
        out: [S, B, D] of the given sources, or None.
        trg: [B, L, D] gradients that are there, or None.
        picks: int64 [B], the locations that were drawn, or None.
    """
    if out is not None:
        out.copy_(part[: out.numel() // out.shape[2]].view(out.shape))
    if trg is not None and picks is not None:
        images = torch.arange(len(picks), device=picks.device)
        drawn = part[len(part) - len(picks) :]
        trg[images, picks] = (trg[images, picks] + drawn).to(trg.dtype)


def scale(grads: Tensor, upstream: Tensor) -> None:
    """Multiply gradients by that of the objective, in place; on a CPU not by 1."""
    if grads.device.type != "cpu" or upstream != 1:
        grads.mul_(upstream)
