"""Backward of the contrastive op: gradients of the products of one block of target images."""

import triton
import triton.language as tl
from amdim_fast.kernels.nce_scores import (
    FEATURE_UNIT,
    LOG2_E,
    PRODUCT_UNIT,
    READ,
    SHIFTED,
    SIZES,
    TANH,
    grouped_order,
    own_rows,
    product_tile,
    tanh,
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
    image_offset,  # row r has own image r % B + image_offset, inside 0 .. N - 1 or nowhere
    width_units,  # D, as the next three in units of 8 features
    src_units,  # strides of src and trg
    trg_image_units,
    trg_location_units,
    scores_units,  # stride of scores, in units of 16 columns
    scores_limit_units,  # columns of scores that are in its memory, in the same units
    grad_units,  # stride of grad_scores, in units of 16 columns; padding is written too
    scale,  # raw = scale * product
    steep,  # SHIFTED: 2 log2(e) scale / clip; TANH: scale / clip
    depth,  # SHIFTED: -2 log2(e) clip; TANH: clip
    SCORES: tl.constexpr,
    CLIP: tl.constexpr,
    SAME_LOCATION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: a tile of BLOCK_ROWS rows and BLOCK_COLUMNS columns.

    Grid: (row blocks * column blocks,). Factors of the caller in weight, grad_own and penalty
    (1 / sqrt(D), a power of two a row for float16) are in the result without a further product.
    """
    columns = images * locations
    row_block, column_block = grouped_order(
        tl.program_id(0),
        tl.cdiv(rows, BLOCK_ROWS),
        tl.cdiv(columns, BLOCK_COLUMNS),
        GROUP_ROWS,
    )
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first_column = column_block * BLOCK_COLUMNS
    offset = tl.arange(0, BLOCK_COLUMNS)
    column = first_column + offset
    is_row = row < rows
    row_index = tl.minimum(row, rows - 1).to(tl.int64)

    if SCORES == READ:
        score_rows = scores + row_index * (scores_units * PRODUCT_UNIT)
        is_stored = is_row[:, None] & (column < scores_limit_units * PRODUCT_UNIT)[None, :]
        score_tile = (score_rows + first_column)[:, None] + offset[None, :]
        product = tl.load(score_tile, mask=is_stored, other=0.0)
    else:
        column_index = tl.minimum(column, columns - 1)
        image_stride = trg_image_units * FEATURE_UNIT
        location_stride = trg_location_units * FEATURE_UNIT
        trg_offset = (column_index // locations).to(tl.int64) * image_stride
        trg_offset += (column_index % locations).to(tl.int64) * location_stride
        product = product_tile(
            src,
            trg,
            row_index * (src_units * FEATURE_UNIT),
            trg_offset,
            row_block * BLOCK_ROWS,
            first_column,
            width_units,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_WIDTH,
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
    log_sum = tl.where(log_sum == float("-inf"), 0.0, log_sum)  # no negatives: the weight is 0
    if CLIP == SHIFTED:
        sigmoid = 1.0 / (1.0 + tl.exp2(steep * product))
        # depth is -2 log2(e) clip: the exponent is log2(e) (clip - log_sum) + depth * sigmoid.
        exponent = depth * (sigmoid - 0.5) - log_sum * LOG2_E
        probability = tl.exp2(tl.minimum(exponent, 0.0))
        slope = 4.0 * sigmoid * (1.0 - sigmoid)
    elif CLIP == TANH:
        ratio = tanh(steep * product)
        probability = tl.exp2(tl.minimum(depth * ratio - log_sum, 0.0) * LOG2_E)
        slope = 1.0 - ratio * ratio
    else:
        probability = tl.exp2(tl.minimum(scale * product - log_sum, 0.0) * LOG2_E)
        slope = 1.0
    grad = factor * probability * slope
    own_start = (row % source_images + image_offset) * locations
    first_own = tl.min(own_start, axis=0)
    last_own = tl.max(own_start, axis=0) + locations - 1
    if (first_own < first_column + BLOCK_COLUMNS) & (last_own >= first_column):
        last_row = tl.minimum(row_block * BLOCK_ROWS + BLOCK_ROWS, rows) - 1
        first_set = row_block * BLOCK_ROWS // source_images
        for set_index in range(first_set, last_row // source_images + 1):
            own_row, is_here = own_rows(
                column,
                set_index,
                locations,
                columns,
                source_images,
                image_offset,
                rows,
                row_block,
                BLOCK_ROWS,
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
