"""Forward of the contrastive op: sums over the negatives of each row, in strips of columns."""

import triton
import triton.language as tl
from amdim_fast.kernels.nce_scores import (
    COMPUTE_AND_STORE,
    FEATURE_UNIT,
    LN_2,
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


@triton.jit(do_not_specialize=[*SIZES, "stride_group", "strips", "tiles_per_strip"])
def nce_forward(
    src,  # [R, D] sources, R = S * B, or their descriptor
    trg,  # [N, L, D] targets, or the descriptor of [N * L, D]
    scores,  # [R, >= N * L] float32 products: read, written or unused, as SCORES says
    own,  # [R, L] float32, out: products with the own image; other rows are left as they are
    totals,  # [G, strips, R] float32, out: sum of exp(score - shift); G = L for SAME_LOCATION, or 1
    maxima,  # as totals, out: the shift of each total; unused for SHIFTED, where it is the clip
    squares,  # as totals, out: sum of raw^2
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
    stride_group,  # elements from one g to the next in totals, maxima and squares
    strips,
    tiles_per_strip,
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
    """One program: BLOCK_ROWS rows against a strip of tiles of BLOCK_COLUMNS columns.

    Grid: (row blocks * strips, G). Columns are the N * L locations, or the N images at location
    program_id(1). Partial results of a strip are stored apart, so any order of programs is right.
    """
    row_block, strip = grouped_order(
        tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), strips, GROUP_ROWS
    )
    group = tl.program_id(1)
    # Columns of one image, and from one column to the next in scores.
    span = 1 if SAME_LOCATION else locations
    step = locations if SAME_LOCATION else 1
    columns = images * span
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    row_index = tl.minimum(row, rows - 1).to(tl.int64)
    own_start = (row % source_images + image_offset) * span
    first_own = tl.min(own_start, axis=0)
    last_own = tl.max(own_start, axis=0) + span - 1
    first_set = row_block * BLOCK_ROWS // source_images
    last_set = tl.minimum(row_block * BLOCK_ROWS + BLOCK_ROWS, rows) - 1
    last_set = last_set // source_images
    if SAME_LOCATION:
        trg += group.to(tl.int64) * (trg_location_units * FEATURE_UNIT)
        scores += group
        own += group

    # Within a tile 32 bits reach: plans keep no rows longer than that.
    stride_scores = scores_units * PRODUCT_UNIT
    score_rows = scores + (row_block * BLOCK_ROWS).to(tl.int64) * stride_scores
    score_offset = tl.arange(0, BLOCK_ROWS) * stride_scores
    offset = tl.arange(0, BLOCK_COLUMNS)
    total = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    square = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    maximum = tl.full([BLOCK_ROWS], float("-inf"), dtype=tl.float32)
    for tile in range(tiles_per_strip):
        first_column = (strip * tiles_per_strip + tile) * BLOCK_COLUMNS
        column = first_column + offset
        is_column = column < columns
        score_tile = score_rows + first_column * step
        score_tile = score_tile + (score_offset[:, None] + (offset * step)[None, :])
        # Padding is read and written too: a limit at N * L would break vectors apart.
        is_stored = is_column if SAME_LOCATION else column < scores_limit_units * PRODUCT_UNIT
        is_stored = is_row[:, None] & is_stored[None, :]
        if SCORES == READ:
            product = tl.load(score_tile, mask=is_stored, other=0.0)
        else:
            column_index = tl.minimum(column, columns - 1)
            image_stride = trg_image_units * FEATURE_UNIT
            trg_offset = (column_index // span).to(tl.int64) * image_stride
            if not SAME_LOCATION:
                location_stride = trg_location_units * FEATURE_UNIT
                trg_offset += (column_index % span).to(tl.int64) * location_stride
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
        if SCORES == COMPUTE_AND_STORE:
            tl.store(score_tile, product, mask=is_stored)

        if (first_own < first_column + BLOCK_COLUMNS) & (last_own >= first_column):
            for set_index in range(first_set, last_set + 1):
                own_row, is_here = own_rows(
                    column,
                    set_index,
                    span,
                    columns,
                    source_images,
                    image_offset,
                    rows,
                    row_block,
                    BLOCK_ROWS,
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
            sigmoid = 1.0 / (1.0 + tl.exp2(steep * product))
            total += tl.sum(tl.where(is_negative, tl.exp2(depth * sigmoid), 0.0), axis=1)
        else:
            score = depth * tanh(steep * product) if CLIP == TANH else raw
            score = tl.where(is_negative, score, float("-inf"))
            larger = tl.maximum(maximum, tl.max(score, axis=1))
            shift = tl.where(larger == float("-inf"), 0.0, larger)
            total *= tl.exp2((maximum - shift) * LOG2_E)
            total += tl.sum(tl.exp2((score - shift[:, None]) * LOG2_E), axis=1)
            maximum = larger

    partial = group.to(tl.int64) * stride_group + strip.to(tl.int64) * rows + row
    tl.store(totals + partial, total, mask=is_row)
    tl.store(squares + partial, square, mask=is_row)
    if CLIP != SHIFTED:
        tl.store(maxima + partial, maximum, mask=is_row)


@triton.jit(do_not_specialize=["rows", "slots", "strips", "groups"])
def nce_combine(
    totals,  # [G, slots, R] float32
    maxima,  # [G, slots, R] float32; unused for SHIFTED
    squares,  # [G, slots, R] float32
    neg,  # [R, G] float32, out: log of the sum over all strips
    row_squares,  # [G, R] float32, out
    rows,
    slots,
    strips,  # slots in use
    groups,
    clip,
    CLIP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """One program: the strips of BLOCK_ROWS rows, added in their order. Grid: (row blocks, G).

    The sums are left in the first slot too, to go on with when there are more columns.
    """
    group = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    total = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    square = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    maximum = tl.full([BLOCK_ROWS], float("-inf"), dtype=tl.float32)
    for strip in range(strips):
        partial = (group.to(tl.int64) * slots + strip) * rows + row
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
    first = group.to(tl.int64) * slots * rows + row
    tl.store(totals + first, total, mask=is_row)
    tl.store(squares + first, square, mask=is_row)
    if CLIP != SHIFTED:
        tl.store(maxima + first, maximum, mask=is_row)
    shift = clip if CLIP == SHIFTED else tl.where(maximum == float("-inf"), 0.0, maximum)
    logarithm = tl.log2(tl.where(total > 0.0, total, 1.0)) * LN_2 + shift
    result = tl.where(total > 0.0, logarithm, float("-inf"))
    tl.store(neg + row.to(tl.int64) * groups + group, result, mask=is_row)
    tl.store(row_squares + group.to(tl.int64) * rows + row, square, mask=is_row)


INTERPRETED = not isinstance(nce_forward, triton.JITFunction)
