"""Pieces both contrastive kernels share: the product of a tile, its order, and the clip.

A product is the plain dot product of a source row and a target column; raw = scale * product.
"""

import triton
import triton.language as tl

# What a kernel does with the [rows, columns] matrix of products.
COMPUTE = tl.constexpr(0)
COMPUTE_AND_STORE = tl.constexpr(1)
READ = tl.constexpr(2)

# How scores are clipped: by the shifted sigmoid, by tanh with a running maximum, not at all.
SHIFTED = tl.constexpr(0)
TANH = tl.constexpr(1)
NO_CLIP = tl.constexpr(2)

# Lengths of features come in units of 8 entries and lengths of products in units of 16, so that the
# compiler knows them to be whole; it does not believe ``tl.multiple_of`` of a scalar.
FEATURE_UNIT = tl.constexpr(8)
PRODUCT_UNIT = tl.constexpr(16)

# Sizes and strides that are passed as they are: one compilation serves every batch.
SIZES = (
    "rows",
    "images",
    "locations",
    "source_images",
    "image_offset",
    "width_units",
    "src_units",
    "trg_image_units",
    "trg_location_units",
    "scores_units",
    "scores_limit_units",
)

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def grouped_order(program, row_blocks, column_blocks, GROUP_ROWS: tl.constexpr):
    """Row block and column block of a program; neighbours share targets, then sources, in L2."""
    per_group = GROUP_ROWS * column_blocks
    first = program // per_group * GROUP_ROWS
    size = tl.minimum(row_blocks - first, GROUP_ROWS)
    within = program % per_group
    return first + within % size, within // size


@triton.jit
def product_tile(
    src,
    trg,
    src_offset,
    trg_offset,
    first_row,
    first_column,
    width_units,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """[BLOCK_ROWS, BLOCK_COLUMNS] float32 products.

    src_offset [BLOCK_ROWS] and trg_offset [BLOCK_COLUMNS] lead to the first of the contiguous
    features; tensor descriptors take first_row and first_column instead and read 0 beyond an end.
    """
    width = width_units * FEATURE_UNIT
    offset = tl.arange(0, BLOCK_WIDTH)
    product = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype=tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        if DESCRIPTORS:
            src_tile = src.load([first_row, start])
            trg_tile = trg.load([first_column, start]).T
        else:
            feature = start + offset
            is_feature = feature < width
            src_place = src + src_offset[:, None] + feature[None, :]
            trg_place = trg + trg_offset[None, :] + feature[:, None]
            src_tile = tl.load(src_place, mask=is_feature[None, :], other=0.0)
            trg_tile = tl.load(trg_place, mask=is_feature[:, None], other=0.0)
        product = tl.dot(src_tile, trg_tile, product, input_precision=PRECISION)
    return product


@triton.jit
def own_rows(
    column,
    set_index,
    span,
    columns,
    source_images,
    image_offset,
    rows,
    row_block,
    BLOCK_ROWS: tl.constexpr,
):
    """Of one source set: the row whose own image holds each column, whether this block has it.

    At most one row a set and column: reductions along rows take the place of scattered accesses,
    whose addresses do not fit in the registers.
    """
    image = column // span - image_offset
    row = set_index * source_images + image
    first_row = row_block * BLOCK_ROWS
    is_here = (image >= 0) & (image < source_images) & (column < columns)
    is_here = is_here & (row >= first_row) & (row < first_row + BLOCK_ROWS) & (row < rows)
    return row, is_here


@triton.jit
def tanh(x):
    """Hyperbolic tangent to about 2 ulp of float32, in instructions that every target has."""
    size = tl.abs(x)
    small = tl.minimum(size, 0.25)
    square = small * small
    series = 0.13333333 + square * (-0.05396825 + square * 0.021869488)
    near = small * (1.0 + square * (-0.33333333 + square * series))
    decay = tl.exp2(size * (-2.0 * LOG2_E))
    far = (1.0 - decay) / (1.0 + decay)
    result = tl.where(size < 0.25, near, far)
    return tl.where(x < 0.0, -result, result)
