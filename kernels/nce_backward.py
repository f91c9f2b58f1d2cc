"""Fused backward: gradients of the products of one block of target images, products inside.

For other images' locations as negatives. ``nce_row_gradients`` prepares what it needs of each row.
"""

import triton
import triton.language as tl
from amdim_fast.kernels.nce_clip import LOG2_E, probability_and_slope
from amdim_fast.kernels.nce_rows import half_exponent, own_upstream, set_upstream
from amdim_fast.kernels.nce_scores import (
    PRODUCT_UNIT,
    SIZES,
    own_rows,
    product_tile,
    swizzled_order,
)


@triton.jit(
    do_not_specialize=["first_set", "first_own", "first_sum", "source_images", "locations", "parts"]
)
def nce_row_gradients(
    score,  # as in nce_rows
    neg,
    row_square,
    exponents,
    grad_log_prob,
    grad_loss,
    grad_mean_sq,
    grad_totals,
    grad_own,  # [R, L] float32, out: gradients of the products with the own image
    weight,  # [R] float32, out: factor of the negatives' probabilities
    penalty,  # [R] float32, out: factor of the product in its own gradient
    first_set,
    first_own,
    first_sum,
    source_images,
    locations,
    parts,
    loss_weight,
    mean_sq_weight,
    own_share,
    square_share,
    scale,
    inverse_clip,
    GRADIENTS: tl.constexpr,
    TILE_OWN: tl.constexpr,
):
    """One program: one row. Grid: (R,)."""
    row = tl.program_id(0)
    set_index = first_set + row // source_images
    flat = first_set.to(tl.int64) * source_images + row
    location = tl.arange(0, TILE_OWN)[None, :]
    is_location = location < locations
    row_place = first_own + row.to(tl.int64) * locations
    own = tl.load(score + row_place + location, mask=is_location, other=0.0)
    log_sum = tl.load(neg + first_sum + row)
    uniform, of_square = set_upstream(
        set_index,
        grad_loss,
        grad_mean_sq,
        grad_totals,
        parts,
        loss_weight,
        mean_sq_weight,
        own_share,
        square_share,
        GRADIENTS,
    )
    upstream = own_upstream(uniform, grad_log_prob, row_place, location, is_location)
    of_own = upstream / (1.0 + tl.exp2((own - log_sum) * LOG2_E))
    total = -tl.sum(tl.sum(of_own, axis=1), axis=0)
    factor = scale
    of_product = 2.0 * scale * scale * of_square
    if exponents is not None:
        squares = tl.load(row_square + flat) / square_share
        exponent = half_exponent(of_own, total, of_product, squares, scale)
        tl.store(exponents + row, exponent)
        factor *= tl.exp2(exponent)
        of_product *= tl.exp2(exponent)
    ratio = own * inverse_clip
    of_own *= (1.0 - ratio * ratio) * factor
    tl.store(grad_own + row.to(tl.int64) * locations + location, of_own, mask=is_location)
    tl.store(weight + row, total * factor)
    tl.store(penalty + row, of_product)


@triton.jit(do_not_specialize=[*SIZES, "first_sum", "grads_units"])
def nce_backward(
    src,  # [R, D] sources, R = S * B, or their descriptor
    trg,  # [N, L, D] targets of the block, or the descriptor of [N * L, D]
    grads,  # [R, >= N * L], out: gradients of the products in the type of the inputs
    grad_own,  # [R, L] float32: gradients of the products with the own image
    weight,  # [R] float32: factor of the negatives' probabilities
    neg,  # [..] float32: log-sums over the negatives of all rows of the call
    penalty,  # [R] float32: factor of the product in its own gradient
    first_sum,  # of the pairing, in neg
    rows,
    images,  # N
    locations,  # L
    source_images,  # B
    image_offset,  # own image of row r: r % B + image_offset, none if outside 0 .. N - 1
    width_units,  # D, as the next three in units of 8 features
    src_units,  # strides of src and trg
    trg_image_units,
    trg_location_units,
    grads_units,  # stride of grads, in units of 16 columns; padding is written too
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
    """One program: a tile of TILE_ROWS rows and TILE_COLUMNS columns.

    Grid: (row tiles * column tiles,).
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
    log_sum = tl.load(neg + first_sum + row_index)[:, None]
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
    out_rows = grads + row_index * (grads_units * PRODUCT_UNIT)
    out_tile = (out_rows + first_column)[:, None] + offset[None, :]
    is_stored = is_row[:, None] & (column < grads_units * PRODUCT_UNIT)[None, :]
    tl.store(out_tile, grad.to(grads.dtype.element_ty), mask=is_stored)
