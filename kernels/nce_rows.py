"""Passes over the products of some rows: sums over the negatives, results, and gradients.

A row needs all of its columns and nothing else, so one program does everything for one row.
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
    probability_and_slope,
)
from amdim_fast.kernels.nce_scores import PRODUCT_UNIT

# Where the gradients of a row's products come from: nowhere, from the weights of the objective, or
# from the gradients of the results.
NO_GRADIENTS = tl.constexpr(0)
OF_OBJECTIVE = tl.constexpr(1)
OF_RESULTS = tl.constexpr(2)

# Largest exponent of the gradient of a product in float16, and of the power that brings it there.
HALF_EXPONENT = tl.constexpr(15.0)
LARGEST_SHIFT = tl.constexpr(100.0)

ROW_SIZES = (
    "first_row",
    "first_set",
    "first_own",
    "first_sum",
    "source_images",
    "images",
    "locations",
    "image_offset",
    "parts",
)
BLOCK_SIZES = ("scores_units", "grads_units", "limit_units")


@triton.jit
def set_upstream(
    set_index,
    grad_loss,
    grad_mean_sq,
    grad_totals,
    parts,
    loss_weight,
    mean_sq_weight,
    own_share,
    square_share,
    GRADIENTS: tl.constexpr,
):
    """Gradients, through the results of a set, of each log-probability and of the sum of raw^2."""
    of_loss = loss_weight
    of_square = mean_sq_weight
    if GRADIENTS == OF_RESULTS:
        of_loss = 0.0
        of_square = 0.0
        if grad_totals is not None:
            of_loss += loss_weight * tl.load(grad_totals + set_index % parts)
            of_square += mean_sq_weight * tl.load(grad_totals + parts)
        if grad_loss is not None:
            of_loss += tl.load(grad_loss + set_index)
        if grad_mean_sq is not None:
            of_square += tl.load(grad_mean_sq + set_index)
    return -of_loss * own_share, of_square * square_share


@triton.jit
def own_upstream(uniform, grad_log_prob, row_place, location, is_here):
    """Gradient of a row's log-probabilities at some locations; 0 elsewhere."""
    upstream = tl.where(is_here, uniform, 0.0)
    if grad_log_prob is not None:
        upstream += tl.load(grad_log_prob + row_place + location, mask=is_here, other=0.0)
    return upstream


@triton.jit
def half_exponent(of_own, weight, penalty, square, scale):
    """Power of two, as an exponent, that brings a row's largest gradient near 2**15.

    The weight is a scalar.
    """
    largest = tl.maximum(tl.max(tl.max(tl.abs(of_own), axis=1), axis=0), tl.abs(weight))
    bound = largest * scale + tl.abs(penalty) * tl.sqrt(square) / scale
    shift = HALF_EXPONENT - tl.ceil(tl.log2(tl.maximum(bound, 1e-37)))
    shift = tl.minimum(tl.maximum(shift, -LARGEST_SHIFT), LARGEST_SHIFT)
    return tl.where(bound > 0.0, shift, LARGEST_SHIFT)


@triton.jit
def tile_columns(
    start,
    images,
    locations,
    SAME_LOCATION: tl.constexpr,
    TILE_IMAGES: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """Columns of a tile, and which exist: whole images for SAME_LOCATION, else adjacent columns."""
    offset = tl.arange(0, TILE_COLUMNS)[None, :]
    if SAME_LOCATION:
        image = start + tl.arange(0, TILE_IMAGES)[:, None]
        column = image * locations + offset
        is_column = (image < images) & (offset < locations)
    else:
        column = start + offset
        is_column = column < images * locations
    return column, is_column


@triton.jit
def over_softmax(values, SAME_LOCATION: tl.constexpr):
    """Sum over the columns of each softmax: a scalar, or [1, columns] for SAME_LOCATION."""
    if SAME_LOCATION:
        total = tl.sum(values, axis=0, keep_dims=True)
    else:
        total = tl.sum(tl.sum(values, axis=1), axis=0)
    return total


@triton.jit(do_not_specialize=[*ROW_SIZES, *BLOCK_SIZES])
def nce_rows(
    scores,  # [C, >= N * L] float32 products of C rows
    grads,  # as scores, out: their gradients in the type of the inputs; may be the same memory
    score,  # flat results of all rows of the call; [.., L] float32: clipped scores of own images
    log_prob,  # [.., L] float32
    neg,  # [..] or, for SAME_LOCATION, [.., L] float32: log-sums over the negatives
    row_loss,  # [..] float32: share of the row in its set's loss
    row_square,  # [..] float32: share of the row in its set's mean of raw^2
    exponents,  # [R] float32, out: power of two on each row of grads, or None for 1
    grad_log_prob,  # gradients of the results, each may be None
    grad_loss,
    grad_mean_sq,
    grad_totals,
    first_row,  # of the chunk, in its pairing
    first_set,  # of the pairing, in the call
    first_own,  # of the pairing, in score and log_prob
    first_sum,  # of the pairing, in neg
    source_images,  # B
    images,  # N
    locations,  # L
    image_offset,  # own image of row r: r % B + image_offset, none if outside 0 .. N - 1
    parts,  # set s counts in grad_totals[s % parts]
    scores_units,  # strides of scores and grads, in units of 16 entries
    grads_units,
    limit_units,  # columns in memory, in the same units
    loss_weight,
    mean_sq_weight,
    own_share,  # 1 / (B * L)
    square_share,  # 1 / (B * all targets * L)
    scale,  # raw = scale * product
    steep,  # as depth, a factor of the clip: see nce_clip
    depth,
    inverse_clip,  # 1 / clip, or 0
    STATISTICS: tl.constexpr,
    GRADIENTS: tl.constexpr,
    SAME_LOCATION: tl.constexpr,
    CLIP: tl.constexpr,
    TILE_IMAGES: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_OWN: tl.constexpr,
):
    """One program: one row. Grid: (C,).

    With STATISTICS it writes the results of the row, else it reads them. Gradients that overwrite
    their own products are half as long, so a tile never reaches products of a later one; the
    barrier keeps it behind every thread's loads of its own tile.
    """
    row = first_row + tl.program_id(0)
    set_index = first_set + row // source_images
    flat = first_set.to(tl.int64) * source_images + row
    own_image = row % source_images + image_offset
    own_column = own_image * locations
    has_own = (own_image >= 0) & (own_image < images)
    line = scores + tl.program_id(0).to(tl.int64) * scores_units * PRODUCT_UNIT
    limit = limit_units * PRODUCT_UNIT
    stop = images if SAME_LOCATION else images * locations
    step: tl.constexpr = TILE_IMAGES if SAME_LOCATION else TILE_COLUMNS
    location = tl.arange(0, TILE_OWN)[None, :]
    is_location = location < locations
    row_place = first_own + row.to(tl.int64) * locations
    own_place = row_place + location
    # Scalars where there is one softmax: a tensor of one entry would be sent through shared memory.
    if SAME_LOCATION:
        sum_place = first_sum + row.to(tl.int64) * locations + location
        is_sum = is_location
    else:
        sum_place = first_sum + row.to(tl.int64)
        is_sum = row >= 0

    if STATISTICS:
        total = tl.zeros([TILE_IMAGES, TILE_COLUMNS], dtype=tl.float32)
        square = tl.zeros([TILE_IMAGES, TILE_COLUMNS], dtype=tl.float32)
        maximum = tl.full([TILE_IMAGES, TILE_COLUMNS], float("-inf"), dtype=tl.float32)
        for start in range(0, stop, step):
            column, is_column = tile_columns(
                start, images, locations, SAME_LOCATION, TILE_IMAGES, TILE_COLUMNS
            )
            is_loaded = is_column if SAME_LOCATION else column < limit
            product = tl.load(line + column, mask=is_loaded, other=0.0)
            product = tl.where(is_column, product, 0.0)
            is_own = (column >= own_column) & (column < own_column + locations)
            is_negative = is_column & (is_own == 0)
            raw = product * scale
            square += raw * raw
            if CLIP == SHIFTED:
                exponential = exp_shifted(product, steep, depth)
                total += tl.where(is_negative, exponential, 0.0)
            else:
                value = clipped(product, scale, steep, depth, CLIP)
                value = tl.where(is_negative, value, float("-inf"))
                larger = tl.maximum(maximum, value)
                shift = tl.where(larger == float("-inf"), 0.0, larger)
                total *= tl.exp2((maximum - shift) * LOG2_E)
                total += tl.exp2((value - shift) * LOG2_E)
                maximum = larger
        squares = tl.sum(tl.sum(square, axis=1))
        if CLIP == SHIFTED:
            # depth is -2 log2(e) clip.
            shift = -0.5 * LN_2 * depth
        else:
            if SAME_LOCATION:
                shift = tl.max(maximum, axis=0, keep_dims=True)
            else:
                shift = tl.max(tl.max(maximum, axis=1), axis=0)
            shift = tl.where(shift == float("-inf"), 0.0, shift)
            total *= tl.exp2((maximum - shift) * LOG2_E)
        total = over_softmax(total, SAME_LOCATION)
        log_sum = tl.log2(tl.where(total > 0.0, total, 1.0)) * LN_2 + shift
        log_sum = tl.where(total > 0.0, log_sum, float("-inf"))
        # Triton 3.9's interpreter has no tensor of one boolean, so the row decides on a count.
        own_locations = tl.where(has_own, locations, 0)
        found = tl.load(line + own_column + location, mask=location < own_locations, other=0.0)
        own = own_score(found, scale, inverse_clip)
        found = log_probability(own, log_sum)
        loss = -tl.sum(tl.sum(tl.where(is_location, found, 0.0), axis=1)) * own_share
        tl.store(score + own_place, own, mask=is_location)
        tl.store(log_prob + own_place, found, mask=is_location)
        tl.store(neg + sum_place, log_sum, mask=is_sum)
        tl.store(row_loss + flat, loss)
        tl.store(row_square + flat, squares * square_share)
    else:
        own = tl.load(score + own_place, mask=is_location, other=0.0)
        log_sum = tl.load(neg + sum_place, mask=is_sum, other=0.0)
        squares = tl.load(row_square + flat) / square_share

    if GRADIENTS != NO_GRADIENTS:
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
        weight = -of_own if SAME_LOCATION else -tl.sum(tl.sum(of_own, axis=1), axis=0)
        penalty = 2.0 * scale * scale * of_square
        factor = scale
        if exponents is not None:
            total_weight = 0.0 if SAME_LOCATION else weight
            exponent = half_exponent(of_own, total_weight, penalty, squares, scale)
            tl.store(exponents + row, exponent)
            power = tl.exp2(exponent)
            factor *= power
            penalty *= power
        weight *= factor
        # Without negatives the weight is 0.
        finite = tl.where(log_sum == float("-inf"), 0.0, log_sum)
        out = grads + tl.program_id(0).to(tl.int64) * grads_units * PRODUCT_UNIT
        for start in range(0, stop, step):
            column, is_column = tile_columns(
                start, images, locations, SAME_LOCATION, TILE_IMAGES, TILE_COLUMNS
            )
            is_stored = is_column if SAME_LOCATION else column < limit
            product = tl.load(line + column, mask=is_stored, other=0.0)
            product = tl.where(is_column, product, 0.0)
            probability, slope = probability_and_slope(product, finite, scale, steep, depth, CLIP)
            grad = weight * probability * slope
            last = (start + step) * (locations if SAME_LOCATION else 1)
            first = start * (locations if SAME_LOCATION else 1)
            if (own_column < last) & (own_column + locations > first):
                is_own = (column >= own_column) & (column < own_column + locations)
                here = column - own_column
                of_log_prob = own_upstream(uniform, grad_log_prob, row_place, here, is_own)
                value = own_score(product, scale, inverse_clip)
                sigmoid = 1.0 / (1.0 + tl.exp2((value - log_sum) * LOG2_E))
                grad = tl.where(is_own, of_log_prob * sigmoid * slope * factor, grad)
            grad += penalty * product
            tl.debug_barrier()
            tl.store(out + column, grad.to(grads.dtype.element_ty), mask=is_stored)
