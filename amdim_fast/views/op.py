"""The ops that make views: ``amdim_fast::pack_views`` and the compiled ``amdim_fast::augment``.

``pack_views`` checks parameters and packs them into records, one of 19 int32 words for each view:
crop (top, left, height, width), height and width that the crop is resized to, first row and column
of the output in the resized crop, translation (dy, dx), order, the bits of the four factors, and
flags. ``csrc/shared/view.h`` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amdim_fast.views import compiled
from amdim_fast.views.compiled import LIBRARY
from amdim_fast.views.params import VIEW_FIELDS, ViewParams

RECORD_WORDS = 19
_FIELDS = tuple(VIEW_FIELDS)

LIBRARY.define(
    f"pack_views({', '.join(f'Tensor {name}' for name in _FIELDS)}, Tensor sizes, Tensor windows)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _pack_views(*arguments: Tensor) -> Tensor:
    """Records [V, N, 19]; values on a CPU are checked, values on a GPU are clamped by the op."""
    *values, sizes, windows = arguments
    params = ViewParams(*values)
    params.check_types()
    if params.crop.device.type == "cpu" and len(sizes) == len(params):
        contiguous = [value.contiguous() for value in (*values, sizes, windows)]
        records, impossible = torch.ops.amdim_fast.view_records(*contiguous)
        if not impossible.item():
            return records
    if params.crop.device.type == "cpu":
        params.validate(sizes)
        raise AssertionError("view_records and ViewParams.validate disagree; please report it")
    flags = params.flip.int() + 2 * params.jitter.int() + 4 * params.gray.int()
    factors = (params.brightness, params.contrast, params.saturation, params.hue)
    parts = [
        params.crop,
        windows.expand(*params.crop.shape[:2], 4),
        params.translate,
        params.order,
        torch.stack(factors, -1).view(torch.int32),
        flags[..., None],
    ]
    return torch.cat(parts, -1)


def _fake_pack_views(*arguments: Tensor) -> Tensor:
    crop = arguments[0]
    return crop.new_empty(*crop.shape[:2], RECORD_WORDS)


LIBRARY.impl("pack_views", _pack_views, "CPU")
LIBRARY.impl("pack_views", _pack_views, "CUDA")
torch.library.register_fake("amdim_fast::pack_views", _fake_pack_views, lib=LIBRARY)


def _fake_augment(
    images: Tensor,
    layout: Tensor | None,
    params: Tensor,
    table: Tensor,
    size: int,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    for other in (layout, params, table):
        if other is not None and other.device != images.device:
            raise RuntimeError(
                f"images are on {images.device}, another argument on {other.device}; all must be"
                " on one device"
            )
    shape = (size, size, 3) if channels_last else (3, size, size)
    return table.new_empty(*params.shape[:2], *shape)


if compiled.load_cpu():
    torch.library.register_fake("amdim_fast::augment", _fake_augment, lib=LIBRARY)
    compiled.load_cuda()


def make_views(
    pixels: Tensor | Sequence[Tensor],
    params: ViewParams,
    *,
    windows: Tensor,
    sizes: Tensor,
    table: Tensor,
    size: int,
    channels_last: bool,
) -> Tensor:
    """Make all views in one launch.

    Args:
        pixels: uint8 [N, H, W, 3] with any strides, or N > 0 tensors [H, W, 3].
        params: [V, N], on the CPU or on the device of the images.
        windows: int32 [4] or [N, 4] on the device of ``params``: height and width that the crop is
            resized to, then top and left of the output in the resized crop.
        sizes: int64 [N, 2] on the CPU, height and width of each image.
        table: [3, 256], what each level of each channel becomes; its dtype is the output's.
        size: side of the output, pixels.
        channels_last: whether channels are innermost in the output.

    Returns:
        [V, N, 3, size, size], or [V, N, size, size, 3] if ``channels_last``, on the images' device.
    """
    device = pixels.device if isinstance(pixels, Tensor) else pixels[0].device
    compiled.require(device.type)
    values = [getattr(params, name) for name in _FIELDS]
    records = torch.ops.amdim_fast.pack_views(*values, sizes, windows)
    layout = None
    if not isinstance(pixels, Tensor):
        lengths = 3 * sizes.prod(1)
        starts = (lengths.cumsum(0) - lengths)[:, None]
        layout = _on_device(torch.cat([starts, sizes], 1), device)
    return make_recorded_views(
        pixels,
        _on_device(records, device),
        layout,
        table=table,
        size=size,
        channels_last=channels_last,
    )


def make_recorded_views(
    pixels: Tensor | Sequence[Tensor],
    records: Tensor,
    layout: Tensor | None,
    *,
    table: Tensor,
    size: int,
    channels_last: bool,
) -> Tensor:
    """Make the views of records [V, N, 19]; all arguments are on the images' device.

    ``layout``, int64 [N, 3], is where each image of a list begins in the buffer of all, and its
    height and width; a tensor of images has none. The rest is as in ``make_views``.
    """
    if isinstance(pixels, Tensor):
        images, (height, width) = pixels, pixels.shape[1:3]
    else:
        images = torch.cat([image.reshape(-1) for image in pixels])
        height, width = (max(image.shape[axis] for image in pixels) for axis in (0, 1))
    return torch.ops.amdim_fast.augment(
        *(images, layout, records, table, size, height, width, channels_last)
    )


def _on_device(small: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, through pinned memory so that the host does not wait for the stream."""
    if small.device == device:
        return small
    # Tracers of torch before 2.12 know no pinned memory.
    if device.type == "cuda" and small.device.type == "cpu" and not torch.compiler.is_compiling():
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a CUDA graph cannot replay what is copied from the CPU; give params on the GPU and"
                " images of one size as one tensor"
            )
        return small.pin_memory().to(device, non_blocking=True)
    return small.to(device)
