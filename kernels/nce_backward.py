"""Backward of the contrastive op: gradients of the products of one block of target images."""

import triton
import triton.language as tl
from amdim_fast.kernels.nce_clip import probability_and_slope
from amdim_fast.kernels.nce_scores import (
    PRODUCT_UNIT,
    READ,
    SIZES,
    own_rows,
    product_tile,
    swizzled_order,
)


@triton.jit(do_not_specialize=[*SIZES, "grad_units"])
def nce_backward(
    src,  # [R, D] sources, R = S * B, or their descriptor
    trg,  # [N, L, D] targets of the block, or the descriptor of [N * L, D]
    scores,  # [R, >= N * L] float32 products, read if SCORES is READ
    grad_scores,  # [R, >= N * L], out: gradients of the products in the type of the inputs
    grad_own,  # [R, L] float32: gradients of the products with the own image
    weight,  # [R] or, for SAME_LOCATION, [R, L] float32: factor of the negatives' probabilities
    neg,  # as weight: log-sum over the negatives
    penalty,  # [R] float32: factor of the product in its own gradient
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
    grad_units,  # stride of grad_scores, in units of 16 columns; padding is written too
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
    """One program: a tile of TILE_ROWS rows and TILE_COLUMNS columns.

    Grid: (row tiles * column tiles,). The caller folds the remaining factors of the gradient,
    1 / sqrt(D) and for float16 a power of two for each row, into weight, grad_own and penalty.
    """
    columns = images * locations
    row_tile, column_tile = swizzled_order(
        tl.program_id(0),
        tl.cdiv(rows, TILE_ROWS),
        tl.cdiv(columns, TILE_COLUMNS),
        SWIZZLE_ROWS,
    )
    row = row_tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    first_column = column_tile * TILE_COLUMNS
    offset = tl.arange(0, TILE_COLUMNS)
    column = first_column + offset
    is_row = row < rows
    row_index = tl.minimum(row, rows - 1).to(tl.int64)

    if SCORES == READ:
        score_rows = scores + row_index * (scores_units * PRODUCT_UNIT)
        is_stored = is_row[:, None] & (column < scores_limit_units * PRODUCT_UNIT)[None, :]
        score_tile = (score_rows + first_column)[:, None] + offset[None, :]
        product = tl.load(score_tile, mask=is_stored, other=0.0)
    else:
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

    if SAME_LOCATION:
        statistic = row_index[:, None] * locations + (column % locations)[None, :]
        log_sum = tl.load(neg + statistic)
        factor = tl.load(weight + statistic)
    else:
        log_sum = tl.load(neg + row_index)[:, None]
        factor = tl.load(weight + row_index)[:, None]
    log_sum = tl.where(log_sum == float("-inf"), 0.0, log_sum)  # no negatives: weight is 0
    probability, slope = probability_and_slope(product, log_sum, scale, steep, depth, CLIP)
    grad = factor * probability * slope
    own_start = (row % source_images + image_offset) * locations
    first_own = tl.min(own_start, axis=0)
    last_own = tl.max(own_start, axis=0) + locations - 1
    if (first_own < first_column + TILE_COLUMNS) & (last_own >= first_column):
        last_row = tl.minimum(row_tile * TILE_ROWS + TILE_ROWS, rows) - 1
        first_set = row_tile * TILE_ROWS // source_images
        for set_index in range(first_set, last_row // source_images + 1):
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
            place = own_row.to(tl.int64) * locations + column % locations
            found = tl.load(grad_own + place, mask=is_here, other=0.0)
            is_own = (row[:, None] == own_row[None, :]) & is_here[None, :]
            grad = tl.where(is_own, found[None, :], grad)
    grad += tl.load(penalty + row_index)[:, None] * product
    out_rows = grad_scores + row_index * (grad_units * PRODUCT_UNIT)
    out_tile = (out_rows + first_column)[:, None] + offset[None, :]
    is_stored = is_row[:, None] & (column < grad_units * PRODUCT_UNIT)[None, :]
    tl.store(out_tile, grad.to(grad_scores.dtype.element_ty), mask=is_stored)
