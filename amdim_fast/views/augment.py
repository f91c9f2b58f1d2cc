"""How views are made: ``augment`` applies drawn parameters to images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from amdim_fast.checks import whole_number
from amdim_fast.views import reference
from amdim_fast.views.compiled import check_backend
from amdim_fast.views.images import as_pixels, channel_of, sizes_of
from amdim_fast.views.op import make_recorded_views, make_views
from amdim_fast.views.params import ViewParams, ViewPolicy
from amdim_fast.views.sampling import draw_records

LARGEST_VIEW = 8192  # pixels of a side, as csrc/augment_args.h has it
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def augment(
    images: Tensor | Sequence[Tensor],
    params: ViewParams,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str = "compiled",
) -> Tensor:
    """Make normalized views of uint8 images, exactly as torchvision does on Pillow images.

    Equals, bit for bit with Pillow < 13 on x86-64, for every view and image:

        image = flip, reflected translation, resized_crop(..., size, BICUBIC)
        image = adjust_brightness, _contrast, _saturation, _hue in the drawn order
        view  = Normalize(mean, std)(ToTensor()(Grayscale(3)(image)))

    Images of C channels are RGB if C is 3. Of any other number, each channel is made as a gray
    image (Pillow's mode L) with the same parameters: brightness and contrast change it, saturation,
    hue and grayscale do not. Each channel costs as much as a color image.

    Args:
        images: uint8 [N, H, W, C] or [N, C, H, W], any strides, or N tensors [H, W, C] whose sizes
            may differ. A tensor that fits both layouts is read as [N, H, W, C].
        params: [V, N]. On the CPU their values are checked; on the images' GPU a check would wait
            for the stream, so impossible values are clamped instead.
        size: side of the views, at most 8192 pixels.
        mean: of each of the C channels, for pixels in 0..1.
        std: of each channel, positive.
        dtype: float32, float16 or bfloat16; float32 values rounded once.
        channels_last: each view [N, C, size, size] in torch.channels_last memory.
        backend: "compiled", one pass in C++ or CUDA over all views; "reference", plain PyTorch on
            any device, slow. Both give the same bits.

    Returns:
        [V, N, C, size, size] on the device of the images; N = 0 gives an empty tensor.

    Raises:
        TypeError: images are not uint8, or params, a field of it or dtype has the wrong type.
        ValueError: shapes disagree, or a parameter is impossible for its image.
        RuntimeError: the compiled library is not built, or not for this device; or the call would
            copy from the CPU while a CUDA graph is captured.

    Deterministic: all randomness is in ``params``, and every device gives the same bits. Memory:
    beside the output, the compiled backend holds scratch memory for each CPU thread or CUDA block,
    on CUDA 3 bytes for each pixel of the views, a list of images once more as one buffer and, of
    channels other than 3, the views of one channel three times. Works under ``torch.compile`` and,
    with ``params`` on the GPU and images in one tensor, in CUDA graphs. Not differentiable.
    """
    check_backend(backend)
    if not isinstance(params, ViewParams):
        raise TypeError(f"params is of type {type(params).__name__}; it must be a ViewParams")
    check_output(size=size, mean=mean, std=std, dtype=dtype)
    pixels = as_pixels(images, len(mean))
    if not len(pixels) or backend == "reference":
        params.validate(sizes_of(pixels))
        device = pixels[0].device if len(pixels) else params.crop.device
        own = params.to(device)

        def made(rgb: Tensor | list[Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
            views = reference.make_views(rgb, own, size)
            return reference.normalize(views, mean, std, dtype, channels_last)

        return by_channel(pixels, mean, std, made, channels_last=channels_last)
    device = pixels[0].device
    if params.crop.device.type != "cpu" and params.crop.device != device:
        params = params.to(device)
    # Made on the device of params: a copy from the host would wait for the stream.
    whole = torch.full((2,), size, dtype=torch.int32, device=params.crop.device)
    return compiled_views(
        pixels,
        params,
        windows=nn.functional.pad(whole, (0, 2)),
        size=size,
        mean=mean,
        std=std,
        dtype=dtype,
        channels_last=channels_last,
    )


def drawn_views(
    pixels: Tensor | list[Tensor],
    policy: ViewPolicy,
    *,
    dtype: torch.dtype,
    channels_last: bool,
    generator: torch.Generator | None,
    sample_index: Tensor | None,
) -> Tensor:
    """[2, N, C, size, size]: two views, drawn on the images' device as ``sample_view_params`` does.

    On CUDA, after the first call of a policy and with ``sample_index`` on the CPU, this copies
    nothing from the host and does not wait.
    """
    check_output(size=policy.size, mean=policy.mean, std=policy.std, dtype=dtype)
    first = pixels[0]
    records, layout = draw_records(
        first, policy, sizes_of(pixels), generator=generator, sample_index=sample_index
    )

    def made(rgb: Tensor | list[Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
        views = make_recorded_views(
            rgb,
            records,
            None if isinstance(rgb, Tensor) else layout,
            table=_table(mean, std, dtype, first.device),
            size=policy.size,
            channels_last=channels_last,
        )
        return views.movedim(-1, -3) if channels_last else views

    return by_channel(pixels, policy.mean, policy.std, made, channels_last=channels_last)


def compiled_views(
    pixels: Tensor | list[Tensor],
    params: ViewParams,
    *,
    windows: Tensor,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """[V, N, C, size, size] by the compiled op; see ``op.make_views`` for ``windows``."""
    sizes, device = sizes_of(pixels), pixels[0].device

    def made(rgb: Tensor | list[Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
        views = make_views(
            rgb,
            params,
            windows=windows,
            sizes=sizes,
            table=_table(mean, std, dtype, device),
            size=size,
            channels_last=channels_last,
        )
        return views.movedim(-1, -3) if channels_last else views

    return by_channel(pixels, mean, std, made, channels_last=channels_last)


def by_channel(
    pixels: Tensor | list[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    make: Callable[[Tensor | list[Tensor], Sequence[float], Sequence[float]], Tensor],
    *,
    channels_last: bool,
) -> Tensor:
    """``make(pixels, mean, std)`` of RGB; of other channels, each as a gray image by itself.

    Args:
        pixels: as ``as_pixels`` gives them, of C channels.
        mean: of each channel.
        std: of each channel.
        make: images of three channels, their mean and std to views [..., 3, size, size].
        channels_last: whether channels are innermost in memory.

    Returns:
        [..., C, size, size].
    """
    if len(mean) == 3:
        return make(pixels, mean, std)
    innermost = -1 if channels_last else -3
    views = []
    for channel, (shift, scale) in enumerate(zip(mean, std, strict=True)):
        gray = make(channel_of(pixels, channel), (shift,) * 3, (scale,) * 3)
        views.append(gray[..., :1, :, :].movedim(-3, innermost))
    return torch.cat(views, innermost).movedim(innermost, -3)


def level_table(
    mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[3, 256]: ``(level / 255 - mean) / std`` of each channel, made on the CPU for all devices."""
    levels = torch.arange(256, dtype=torch.float32, device="cpu").div(255)
    shift, scale = (
        torch.tensor(v, dtype=torch.float32, device="cpu")[:, None] for v in (mean, std)
    )
    return levels.sub(shift).div(scale).to(dtype).to(device)


_cached_level_table = lru_cache(maxsize=64)(level_table)


def _table(
    mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``level_table``, kept unless it becomes part of a graph."""
    make = level_table if torch.compiler.is_compiling() else _cached_level_table
    return make(tuple(mean), tuple(std), dtype, device)


def check_output(
    *, size: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> None:
    """Raise unless views can be made of this size, normalization and dtype."""
    whole_number("size", size, most=LARGEST_VIEW)
    for name, values in (("mean", mean), ("std", std)):
        if not _are_numbers(values):
            raise ValueError(
                f"{name} is {values}; it must be a finite number for each channel, such as three"
            )
    if len(mean) != len(std):
        raise ValueError(f"mean is {mean} and std {std}; both must have one number a channel")
    if not all(value > 0 for value in std):
        raise ValueError(f"std is {std}; it must be positive")
    if dtype not in _DTYPES:
        raise TypeError(f"dtype is {dtype}; it must be float32, float16 or bfloat16")


def _are_numbers(values: Sequence[float]) -> bool:
    try:
        return len(values) >= 1 and all(math.isfinite(value) for value in values)
    except (TypeError, ValueError):
        return False
