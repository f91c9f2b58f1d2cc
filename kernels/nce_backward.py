"""Backward of the contrastive op: gradients of the products of one block of target images."""

import triton
import triton.language as tl
from amdim_fast.kernels.nce_scores import (
    LOG2_E,
    READ,
    SHIFTED,
    SIZES,
    TANH,
    grouped_order,
    product_tile,
    tanh,
)


@triton.jit(do_not_specialize=SIZES)
def nce_backward(
    src,  # [R, D] sources, R = S * B
    trg,  # [N, L, D] targets of the block
    scores,  # [R, N * L] float32 products, read if SCORES is READ
    grad_scores,  # [R, N * L], out, contiguous: gradients of the products in the type of the inputs
    grad_own,  # [R, L] float32: gradients of the products with the own image
    weight,  # [R] or, for SAME_LOCATION, [R, L] float32: factor of the negatives' probabilities
    neg,  # as weight: log-sum over the negatives
    penalty,  # [R] float32: factor of the product in its own gradient
    rows,
    images,  # N
    locations,  # L
    source_images,  # B
    image_offset,  # row r has own image r % B + image_offset, inside 0 .. N - 1 or nowhere
    width,  # D
    stride_src,
    stride_trg_image,
    stride_trg_location,
    stride_scores,
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
    WHOLE_WIDTH: tl.constexpr,
    ALIGNMENT: tl.constexpr,
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
    width = tl.multiple_of(width, ALIGNMENT)
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    is_row = row < rows
    is_inside = is_row[:, None] & (column < columns)[None, :]
    row_index = tl.minimum(row, rows - 1).to(tl.int64)
    column_index = tl.minimum(column, columns - 1)
    image = column_index // locations
    location = column_index % locations
    own_image = row % source_images + image_offset

    if SCORES == READ:
        score_tile = scores + row_index[:, None] * stride_scores + column_index[None, :]
        product = tl.load(score_tile, mask=is_inside, other=0.0)
    else:
        trg_columns = (
            trg
            + image.to(tl.int64) * tl.multiple_of(stride_trg_image, ALIGNMENT)
            + location.to(tl.int64) * tl.multiple_of(stride_trg_location, ALIGNMENT)
        )
        product = product_tile(
            src + row_index * tl.multiple_of(stride_src, ALIGNMENT),
            trg_columns,
            width,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_WIDTH,
            WHOLE_WIDTH,
            PRECISION,
        )

    if SAME_LOCATION:
        statistic = row_index[:, None] * locations + location[None, :]
    else:
        statistic = row_index[:, None]
    log_sum = tl.load(neg + statistic)
    log_sum = tl.where(log_sum == float("-inf"), 0.0, log_sum)  # no negatives: the weight is 0
    factor = tl.load(weight + statistic)
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
    first_own = tl.min(own_image, axis=0)
    last_own = tl.max(own_image, axis=0)
    if (first_own <= tl.max(image, axis=0)) & (last_own >= tl.min(image, axis=0)):
        is_own = image[None, :] == own_image[:, None]
        own_tile = grad_own + row_index[:, None] * locations + location[None, :]
        grad = tl.where(is_own, tl.load(own_tile, mask=is_own, other=0.0), grad)
    grad += tl.load(penalty + row_index)[:, None] * product
    out_tile = grad_scores + row_index[:, None] * columns + column_index[None, :]
    tl.store(out_tile, grad.to(grad_scores.dtype.element_ty), mask=is_inside)
