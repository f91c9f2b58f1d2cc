"""Pieces that both fused kernels share: the order of tiles, and their products.

A product is the plain dot product of a source row and a target column; raw = scale * product.
"""

import triton
import triton.language as tl

# Feature lengths are passed in units of 8 entries and product lengths in units of 16, so that the
# compiler sees the divisibility; it ignores ``tl.multiple_of`` on a scalar.
FEATURE_UNIT = tl.constexpr(8)
PRODUCT_UNIT = tl.constexpr(16)

# Sizes and strides that are not specialized on: one compilation serves every batch.
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
)


@triton.jit
def swizzled_order(program, row_tiles, column_tiles, SWIZZLE_ROWS: tl.constexpr):
    """Row tile and column tile of a program, in bands of SWIZZLE_ROWS row tiles.

    Programs next to each other share targets, then sources, in L2.
    """
    per_band = SWIZZLE_ROWS * column_tiles
    first = program // per_band * SWIZZLE_ROWS
    size = tl.minimum(row_tiles - first, SWIZZLE_ROWS)
    within = program % per_band
    return first + within % size, within // size


@triton.jit
def product_tile(
    src,
    trg,
    row_index,
    first_row,
    column_index,
    first_column,
    span,
    width_units,
    src_units,
    trg_image_units,
    trg_location_units,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """[TILE_ROWS, TILE_COLUMNS] float32 products of rows and columns, ``span`` columns per image.

    Pointers take row_index [TILE_ROWS] int64 and column_index [TILE_COLUMNS], within bounds; tensor
    descriptors take first_row and first_column instead and read 0 out of bounds.
    """
    src_offset = row_index * (src_units * FEATURE_UNIT)
    image_stride = trg_image_units * FEATURE_UNIT
    location_stride = trg_location_units * FEATURE_UNIT
    trg_offset = (column_index // span).to(tl.int64) * image_stride
    trg_offset += (column_index % span).to(tl.int64) * location_stride
    width = width_units * FEATURE_UNIT
    offset = tl.arange(0, TILE_WIDTH)
    product = tl.zeros([TILE_ROWS, TILE_COLUMNS], dtype=tl.float32)
    for start in range(0, width, TILE_WIDTH):
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
    row_tile,
    TILE_ROWS: tl.constexpr,
):
    """For one source set: the row whose own image has each column, and whether it is in this tile.

    There is at most one such row for each column, so reductions along rows replace scattered
    accesses, whose addresses would not fit in registers.
    """
    image = column // span - image_offset
    row = set_index * source_images + image
    first_row = row_tile * TILE_ROWS
    is_here = (image >= 0) & (image < source_images) & (column < columns)
    is_here = is_here & (row >= first_row) & (row < first_row + TILE_ROWS) & (row < rows)
    return row, is_here
