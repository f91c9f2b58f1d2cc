"""The shortcut of a strided residual layer, average-pooled, and its gradient; channels_last."""

import triton
import triton.language as tl


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
