"""Fused forward: sums over the negatives of each row, in strips of columns; products stay inside.

For other images' locations as negatives; nothing of the size of the scores is stored.
"""

import triton
import triton.language as tl
from amdim_fast.kernels.nce_clip import (
    LN_2,
    LOG2_E,
    SHIFTED,
    clipped,
    exp_shifted,
    log_probability,
    own_score,
)
from amdim_fast.kernels.nce_scores import SIZES, own_rows, product_tile, swizzled_order


@triton.jit(do_not_specialize=[*SIZES, "strips", "tiles_per_strip"])
def nce_forward(
    src,  # [R, D] sources, R = S * B, or their descriptor
    trg,  # [N, L, D] targets, or the descriptor of [N * L, D]
    own,  # [R, L] float32, out: products with the own image; other rows are left as they are
    totals,  # [strips, R] float32, out: sum of exp(score - shift)
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
    strips,
    tiles_per_strip,
    scale,  # raw = scale * product
    steep,  # as depth, a factor of the clip: see nce_clip
    depth,
    CLIP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    SWIZZLE_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: TILE_ROWS rows against a strip of tiles of TILE_COLUMNS columns.

    Grid: (row tiles * strips,). Each strip stores its own partial results, so programs may run in
    any order.
    """
    row_tile, strip = swizzled_order(
        tl.program_id(0), tl.cdiv(rows, TILE_ROWS), strips, SWIZZLE_ROWS
    )
    columns = images * locations
    row = row_tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    is_row = row < rows
    row_index = tl.minimum(row, rows - 1).to(tl.int64)
    own_start = (row % source_images + image_offset) * locations
    first_own = tl.min(own_start, axis=0)
    last_own = tl.max(own_start, axis=0) + locations - 1
    first_set = row_tile * TILE_ROWS // source_images
    last_set = tl.minimum(row_tile * TILE_ROWS + TILE_ROWS, rows) - 1
    last_set = last_set // source_images

    offset = tl.arange(0, TILE_COLUMNS)
    total = tl.zeros([TILE_ROWS], dtype=tl.float32)
    square = tl.zeros([TILE_ROWS], dtype=tl.float32)
    maximum = tl.full([TILE_ROWS], float("-inf"), dtype=tl.float32)
    for tile in range(tiles_per_strip):
        first_column = (strip * tiles_per_strip + tile) * TILE_COLUMNS
        column = first_column + offset
        is_column = column < columns
        product = product_tile(
            src,
            trg,
            row_index,
            row_tile * TILE_ROWS,
            tl.minimum(column, columns - 1),
            first_column,
            locations,
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
        if (first_own < first_column + TILE_COLUMNS) & (last_own >= first_column):
            for set_index in range(first_set, last_set + 1):
                own_row, is_here = own_rows(
                    column,
                    set_index,
                    locations,
                    columns,
                    source_images,
                    image_offset,
                    rows,
                    row_tile,
                    TILE_ROWS,
                )
                is_own = row[:, None] == own_row[None, :]
                found = tl.sum(tl.where(is_own, product, 0.0), axis=0)
                place = own_row.to(tl.int64) * locations + column % locations
                tl.store(own + place, found, mask=is_here)
        raw = product * scale
        square += tl.sum(tl.where(is_column[None, :], raw * raw, 0.0), axis=1)
        is_before = column[None, :] < own_start[:, None]
        is_after = column[None, :] >= own_start[:, None] + locations
        is_negative = is_column[None, :] & (is_before | is_after)
        if CLIP == SHIFTED:
            exponential = exp_shifted(product, steep, depth)
            total += tl.sum(tl.where(is_negative, exponential, 0.0), axis=1)
        else:
            value = clipped(product, scale, steep, depth, CLIP)
            value = tl.where(is_negative, value, float("-inf"))
            larger = tl.maximum(maximum, tl.max(value, axis=1))
            shift = tl.where(larger == float("-inf"), 0.0, larger)
            total *= tl.exp2((maximum - shift) * LOG2_E)
            total += tl.sum(tl.exp2((value - shift[:, None]) * LOG2_E), axis=1)
            maximum = larger

    partial = strip.to(tl.int64) * rows + row
    tl.store(totals + partial, total, mask=is_row)
    tl.store(squares + partial, square, mask=is_row)
    if CLIP != SHIFTED:
        tl.store(maxima + partial, maximum, mask=is_row)


COMBINE_SIZES = (
    "rows",
    "strips",
    "locations",
    "first_row",
    "first_own",
    "source_images",
    "images",
    "image_offset",
)


@triton.jit(do_not_specialize=[*COMBINE_SIZES])
def nce_combine(
    totals,  # [strips, R] float32
    maxima,  # [strips, R] float32; unused for SHIFTED
    squares,  # [strips, R] float32
    own,  # [R, L] float32 products with the own image; not read where there is none
    score,  # flat results of all rows of the call, out; [.., L] float32: clipped own scores
    log_prob,  # [.., L] float32
    neg,  # [..] float32: log-sums over the negatives
    row_loss,  # [..] float32: share of the row in its set's loss
    row_square,  # [..] float32: share of the row in its set's mean of raw^2
    rows,
    strips,
    locations,
    first_row,  # of the pairing, in neg, row_loss and row_square
    first_own,  # of the pairing, in score and log_prob
    source_images,
    images,
    image_offset,
    own_share,  # 1 / (B * L)
    square_share,  # 1 / (B * all targets * L)
    scale,
    depth,  # for SHIFTED, -2 log2(e) clip
    inverse_clip,
    CLIP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """One program: the strips of TILE_ROWS rows, added in order. Grid: (row tiles,)."""
    row = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    is_row = row < rows
    total = tl.zeros([TILE_ROWS], dtype=tl.float32)
    square = tl.zeros([TILE_ROWS], dtype=tl.float32)
    maximum = tl.full([TILE_ROWS], float("-inf"), dtype=tl.float32)
    for strip in range(strips):
        partial = row.to(tl.int64) + strip * rows
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
    if CLIP == SHIFTED:
        shift = -0.5 * LN_2 * depth
    else:
        shift = tl.where(maximum == float("-inf"), 0.0, maximum)
    log_sum = tl.log2(tl.where(total > 0.0, total, 1.0)) * LN_2 + shift
    log_sum = tl.where(total > 0.0, log_sum, float("-inf"))
    own_image = row % source_images + image_offset
    has_own = is_row & (own_image >= 0) & (own_image < images)
    loss = tl.zeros([TILE_ROWS], dtype=tl.float32)
    for location in range(locations):
        place = row.to(tl.int64) * locations + location
        value = own_score(tl.load(own + place, mask=has_own, other=0.0), scale, inverse_clip)
        found = log_probability(value, log_sum)
        tl.store(score + first_own + place, value, mask=is_row)
        tl.store(log_prob + first_own + place, found, mask=is_row)
        loss -= found
    tl.store(neg + first_row + row, log_sum, mask=is_row)
    tl.store(row_loss + first_row + row, loss * own_share, mask=is_row)
    tl.store(row_square + first_row + row, square * square_share, mask=is_row)


INTERPRETED = not isinstance(nce_forward, triton.JITFunction)
