"""Kernels of residual layers, on maps in channels_last.

The average-pooled shortcut of a strided layer, its gradient, and a matrix product with an epilogue.
"""

import triton
import triton.language as tl
from amdim_fast.kernels.nce_scores import swizzled_order
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Widths of matrices are passed in units of 8 entries, so that the compiler sees the divisibility.
CHANNEL_UNIT = tl.constexpr(8)
# What a product ends with: another matrix is added, or the gradient of a ReLU is taken.
ADD, MASK = tl.constexpr(0), tl.constexpr(1)


@triton.jit(do_not_specialize=["pixels"])
def residual_shortcut(
    x,  # [B, height, width, channels], contiguous
    hidden,  # [B, out_height, out_width, out_channels], contiguous, in and out: its ReLU
    out,  # as hidden, out: the average of each window of x, 0 in channels that x has not
    pixels,  # B * out_height * out_width, below 2^31
    height,
    width,
    channels,
    out_height,
    out_width,
    out_channels,
    KERNEL: tl.constexpr,  # height and width of a window
    STRIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One program: CHANNELS channels of PIXELS pixels. Grid: (tiles of pixels, of channels)."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_pixel, is_channel = pixel < pixels, channel < channels
    row, column = pixel // out_width % out_height, pixel % out_width
    top = pixel // out_width // out_height * height + row * STRIDE
    corner = (top * width + column * STRIDE).to(tl.int64)
    found = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    for place in tl.static_range(KERNEL * KERNEL):
        source = corner + place // KERNEL * width + place % KERNEL
        found += tl.load(
            x + source[:, None] * channels + channel[None, :],
            mask=is_pixel[:, None] & is_channel[None, :],
            other=0.0,
        ).to(tl.float32)
    there = pixel.to(tl.int64)[:, None] * out_channels + channel[None, :]
    is_there = is_pixel[:, None] & (channel < out_channels)[None, :]
    tl.store(out + there, (found / (KERNEL * KERNEL)).to(out.dtype.element_ty), mask=is_there)
    raw = tl.load(hidden + there, mask=is_there, other=0.0)
    # A NaN stays one.
    tl.store(hidden + there, tl.where(raw < 0.0, 0.0, raw), mask=is_there)


@triton.jit(do_not_specialize=["pixels"])
def residual_shortcut_backward(
    grad_out,  # [B, out_height, out_width, out_channels], contiguous
    grad_x,  # [B, height, width, channels], contiguous, in and out: the gradient is added
    pixels,  # B * height * width, below 2^31
    height,
    width,
    channels,
    out_height,
    out_width,
    out_channels,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One program: CHANNELS channels of PIXELS pixels. Grid: (tiles of pixels, of channels)."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_pixel, is_channel = pixel < pixels, channel < channels
    row, column = pixel // width % height, pixel % width
    image = pixel // width // height
    reach: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE  # windows over a pixel, per axis
    found = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    for place in tl.static_range(reach * reach):
        top = row // STRIDE - place // reach
        left = column // STRIDE - place % reach
        covers = (top >= 0) & (top < out_height) & (row - top * STRIDE < KERNEL)
        covers = covers & (left >= 0) & (left < out_width) & (column - left * STRIDE < KERNEL)
        source = ((image * out_height + top) * out_width + left).to(tl.int64)
        found += tl.load(
            grad_out + source[:, None] * out_channels + channel[None, :],
            mask=(is_pixel & covers)[:, None] & is_channel[None, :],
            other=0.0,
        ).to(tl.float32)
    there = grad_x + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    is_there = is_pixel[:, None] & is_channel[None, :]
    found = found / (KERNEL * KERNEL) + tl.load(there, mask=is_there, other=0.0).to(tl.float32)
    tl.store(there, found.to(grad_x.dtype.element_ty), mask=is_there)


@triton.jit(do_not_specialize=["rows", "width_units", "column_units"])
def residual_product(
    a,  # [M, K], as all matrices contiguous and of one half type, or its descriptor
    b,  # [N, K] if TRANSPOSED, else [K, N], below 2^31 entries, or its descriptor
    other,  # [M, N], or its descriptor: what ADD adds, or the ReLU's result for MASK
    out,  # [M, N], out, or its descriptor; may be ``other``
    rows,  # M, below 2^31 - TILE_ROWS
    width_units,  # K / 8
    column_units,  # N / 8
    EPILOGUE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    SWIZZLE_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """One program: a tile of ``a @ b`` in float32, with its epilogue, rounded once.

    Grid: (row tiles * column tiles,). Programs next to each other share rows of ``a`` in L2.
    """
    width, columns = width_units * CHANNEL_UNIT, column_units * CHANNEL_UNIT
    row_tile, column_tile = swizzled_order(
        tl.program_id(0), tl.cdiv(rows, TILE_ROWS), tl.cdiv(columns, TILE_COLUMNS), SWIZZLE_ROWS
    )
    first_row, first_column = row_tile * TILE_ROWS, column_tile * TILE_COLUMNS
    row, column = first_row + tl.arange(0, TILE_ROWS), first_column + tl.arange(0, TILE_COLUMNS)
    is_row, is_column = row < rows, column < columns
    total = tl.zeros([TILE_ROWS, TILE_COLUMNS], dtype=tl.float32)
    for start in range(0, width, TILE_WIDTH):
        if DESCRIPTORS:
            left = a.load([first_row, start])
            right = b.load([first_column, start]).T if TRANSPOSED else b.load([start, first_column])
        else:
            entry = start + tl.arange(0, TILE_WIDTH)
            is_entry = entry < width
            left_place = row.to(tl.int64)[:, None] * width + entry[None, :]
            is_left = is_row[:, None] & is_entry[None, :]
            left = tl.load(a + left_place, mask=is_left, other=0.0)
            if TRANSPOSED:
                right_place = column[None, :] * width + entry[:, None]
            else:
                right_place = entry[:, None] * columns + column[None, :]
            is_right = is_entry[:, None] & is_column[None, :]
            right = tl.load(b + right_place, mask=is_right, other=0.0)
        total = tl.dot(left, right, total)
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    is_there = is_row[:, None] & is_column[None, :]
    if DESCRIPTORS:
        there = other.load([first_row, first_column])
    else:
        there = tl.load(other + place, mask=is_there, other=0.0)
    if EPILOGUE == ADD:
        total += there.to(tl.float32)
    else:
        # A NaN of the ReLU's result passes the gradient on, as torch does.
        total = tl.where(there <= 0.0, 0.0, total)
    if DESCRIPTORS:
        out.store([first_row, first_column], total.to(there.dtype))
    else:
        tl.store(out + place, total.to(there.dtype), mask=is_there)


def descriptor(matrix: Tensor, block: list[int]) -> TensorDescriptor:
    """Of a contiguous matrix; loads out of bounds give 0, stores there nothing."""
    return TensorDescriptor(matrix, list(matrix.shape), [matrix.shape[1], 1], block)
