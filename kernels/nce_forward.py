"""Forward of the contrastive op: sums over the negatives of each row, in strips of columns."""

import triton
import triton.language as tl
from amdim_fast.kernels.nce_clip import LN_2, LOG2_E, SHIFTED, clipped, exp_shifted
from amdim_fast.kernels.nce_scores import (
    COMPUTE_AND_STORE,
    FEATURE_UNIT,
    PRODUCT_UNIT,
    READ,
    SIZES,
    own_rows,
    product_tile,
    swizzled_order,
)


@triton.jit(do_not_specialize=[*SIZES, "softmax_stride", "strips", "tiles_per_strip"])
def nce_forward(
    src,  # [R, D] sources, R = S * B, or their descriptor
    trg,  # [N, L, D] targets, or the descriptor of [N * L, D]
    scores,  # [R, >= N * L] float32 products: read, written or unused, as SCORES says
    own,  # [R, L] float32, out: products with the own image; other rows are left as they are
    totals,  # [M, strips, R] float32, out: sum of exp(score - shift); M = L for SAME_LOCATION, or 1
    maxima,  # as totals, out: the shift of each total; unused for SHIFTED, whose shift is the clip
    squares,  # as totals, out: sum of raw^2
    rows,
    images,  # N
    locations,  # L
    source_images,  # B
    image_offset,  # own image of row r: r % B + image_offset, none if outside 0 .. N - 1
    width_units,  # D, as the next three in units of 8 features
    src_units,  # strides of src and trg
    trg_image_units,
    trg_location_units,
    scores_units,  # stride of scores, in units of 16 columns
    scores_limit_units,  # columns of scores in memory, in the same units
    softmax_stride,  # elements from one softmax to the next in totals, maxima and squares
    strips,
    tiles_per_strip,
    scale,  # raw = scale * product
    steep,  # as depth, a factor of the clip: see nce_clip
    depth,
    SCORES: tl.constexpr,
    CLIP: tl.constexpr,
    SAME_LOCATION: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    SWIZZLE_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: TILE_ROWS rows against a strip of tiles of TILE_COLUMNS columns.

    Grid: (row tiles * strips, M), M softmaxes per row. Columns are the N * L locations or, for
    SAME_LOCATION, the N images at location program_id(1). Each strip stores its own partial
    results, so programs may run in any order.
    """
    row_tile, strip = swizzled_order(
        tl.program_id(0), tl.cdiv(rows, TILE_ROWS), strips, SWIZZLE_ROWS
    )
    softmax = tl.program_id(1)
    # Columns per image, and entries from one column to the next in scores.
    span = 1 if SAME_LOCATION else locations
    step = locations if SAME_LOCATION else 1
    columns = images * span
    row = row_tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    is_row = row < rows
    row_index = tl.minimum(row, rows - 1).to(tl.int64)
    own_start = (row % source_images + image_offset) * span
    first_own = tl.min(own_start, axis=0)
    last_own = tl.max(own_start, axis=0) + span - 1
    first_set = row_tile * TILE_ROWS // source_images
    last_set = tl.minimum(row_tile * TILE_ROWS + TILE_ROWS, rows) - 1
    last_set = last_set // source_images
    if SAME_LOCATION:
        trg += softmax.to(tl.int64) * (trg_location_units * FEATURE_UNIT)
        scores += softmax
        own += softmax

    # Within a tile 32-bit offsets are enough: plans never keep longer rows.
    stride_scores = scores_units * PRODUCT_UNIT
    score_rows = scores + (row_tile * TILE_ROWS).to(tl.int64) * stride_scores
    score_offset = tl.arange(0, TILE_ROWS) * stride_scores
    offset = tl.arange(0, TILE_COLUMNS)
    total = tl.zeros([TILE_ROWS], dtype=tl.float32)
    square = tl.zeros([TILE_ROWS], dtype=tl.float32)
    maximum = tl.full([TILE_ROWS], float("-inf"), dtype=tl.float32)
    for tile in range(tiles_per_strip):
        first_column = (strip * tiles_per_strip + tile) * TILE_COLUMNS
        column = first_column + offset
        is_column = column < columns
        score_tile = score_rows + first_column * step
        score_tile = score_tile + (score_offset[:, None] + (offset * step)[None, :])
        # Padding is read and written too: a limit at N * L would prevent vector accesses.
        is_stored = is_column if SAME_LOCATION else column < scores_limit_units * PRODUCT_UNIT
        is_stored = is_row[:, None] & is_stored[None, :]
        if SCORES == READ:
            product = tl.load(score_tile, mask=is_stored, other=0.0)
        else:
            product = product_tile(
                src,
                trg,
                row_index,
                row_tile * TILE_ROWS,
                tl.minimum(column, columns - 1),
                first_column,
                span,
                width_units,
                src_units,
                trg_image_units,
                trg_location_units,
                TILE_ROWS,
                TILE_COLUMNS,
                TILE_WIDTH,
                DESCRIPTORS,
                PRECISION,
            )
        if SCORES == COMPUTE_AND_STORE:
            tl.store(score_tile, product, mask=is_stored)

        if (first_own < first_column + TILE_COLUMNS) & (last_own >= first_column):
            for set_index in range(first_set, last_set + 1):
                own_row, is_here = own_rows(
                    column,
                    set_index,
                    span,
                    columns,
                    source_images,
                    image_offset,
                    rows,
                    row_tile,
                    TILE_ROWS,
                )
                is_own = row[:, None] == own_row[None, :]
                found = tl.sum(tl.where(is_own, product, 0.0), axis=0)
                place = own_row.to(tl.int64) * locations + column % span
                tl.store(own + place, found, mask=is_here)
        raw = product * scale
        square += tl.sum(tl.where(is_column[None, :], raw * raw, 0.0), axis=1)
        is_before = column[None, :] < own_start[:, None]
        is_after = column[None, :] >= own_start[:, None] + span
        is_negative = is_column[None, :] & (is_before | is_after)
        if CLIP == SHIFTED:
            exponential = exp_shifted(product, steep, depth)
            total += tl.sum(tl.where(is_negative, exponential, 0.0), axis=1)
        else:
            score = clipped(product, scale, steep, depth, CLIP)
            score = tl.where(is_negative, score, float("-inf"))
            larger = tl.maximum(maximum, tl.max(score, axis=1))
            shift = tl.where(larger == float("-inf"), 0.0, larger)
            total *= tl.exp2((maximum - shift) * LOG2_E)
            total += tl.sum(tl.exp2((score - shift[:, None]) * LOG2_E), axis=1)
            maximum = larger

    partial = softmax.to(tl.int64) * softmax_stride + strip.to(tl.int64) * rows + row
    tl.store(totals + partial, total, mask=is_row)
    tl.store(squares + partial, square, mask=is_row)
    if CLIP != SHIFTED:
        tl.store(maxima + partial, maximum, mask=is_row)


@triton.jit(do_not_specialize=["rows", "slots", "strips", "softmaxes"])
def nce_combine(
    totals,  # [M, slots, R] float32
    maxima,  # [M, slots, R] float32; unused for SHIFTED
    squares,  # [M, slots, R] float32
    neg,  # [R, M] float32, out: log of the sum over all strips
    row_squares,  # [M, R] float32, out
    rows,
    slots,
    strips,  # slots in use
    softmaxes,  # M
    clip,
    CLIP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """One program: the strips of TILE_ROWS rows, added in order. Grid: (row tiles, M).

    The sums are also left in the first slot, from which the next block of columns continues.
    """
    softmax = tl.program_id(1)
    row = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    is_row = row < rows
    total = tl.zeros([TILE_ROWS], dtype=tl.float32)
    square = tl.zeros([TILE_ROWS], dtype=tl.float32)
    maximum = tl.full([TILE_ROWS], float("-inf"), dtype=tl.float32)
    for strip in range(strips):
        partial = (softmax.to(tl.int64) * slots + strip) * rows + row
        square += tl.load(squares + partial, mask=is_row, other=0.0)
        part = tl.load(totals + partial, mask=is_row, other=0.0)
        if CLIP == SHIFTED:
            total += part
        else:
            other = tl.load(maxima + partial, mask=is_row, other=float("-inf"))
            larger = tl.maximum(maximum, other)
            shift = tl.where(larger == float("-inf"), 0.0, larger)
            total = total * tl.exp2((maximum - shift) * LOG2_E)
            total += part * tl.exp2((other - shift) * LOG2_E)
            maximum = larger
    first = softmax.to(tl.int64) * slots * rows + row
    tl.store(totals + first, total, mask=is_row)
    tl.store(squares + first, square, mask=is_row)
    if CLIP != SHIFTED:
        tl.store(maxima + first, maximum, mask=is_row)
    shift = clip if CLIP == SHIFTED else tl.where(maximum == float("-inf"), 0.0, maximum)
    logarithm = tl.log2(tl.where(total > 0.0, total, 1.0)) * LN_2 + shift
    result = tl.where(total > 0.0, logarithm, float("-inf"))
    tl.store(neg + row.to(tl.int64) * softmaxes + softmax, result, mask=is_row)
    tl.store(row_squares + softmax.to(tl.int64) * rows + row, square, mask=is_row)


INTERPRETED = not isinstance(nce_forward, triton.JITFunction)
