"""Views of images: apply drawn parameters, draw and apply in one module, and the test transform."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from amdim_fast.views import reference, sampler
from amdim_fast.views import reference_sampling as sampling
from amdim_fast.views.op import make_views
from amdim_fast.views.params import POLICIES, ViewParams, ViewPolicy, prepare_draw

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BACKENDS = ("compiled", "reference")


def sample_view_params(
    policy: ViewPolicy,
    sizes: Tensor | Sequence[Sequence[int]],
    *,
    views: int = 2,
    generator: torch.Generator | None = None,
    sample_index: Tensor | None = None,
    backend: str = "compiled",
) -> ViewParams:
    """Draw the parameters of some views of each image, on the CPU.

    The crop follows torchvision's ``RandomResizedCrop.get_params``: ten tries, then the central
    crop of the nearest allowed ratio. Jitter follows its ``ColorJitter`` under ``RandomApply``.

    Args:
        policy: the distribution.
        sizes: [N, 2] integers or N pairs, height and width of each image.
        views: V.
        generator: CPU generator, the default one if None; exactly one 63-bit seed is drawn.
        sample_index: int64 [N], not negative, default 0 to N - 1; of the whole data set, also where
            a process has a part of it. With the same seed the same index gets the same parameters
            in any batch.
        backend: "compiled" or "reference"; their draws are equal.

    Returns:
        Parameters of shape [V, N, ...] on the CPU; the flip is shared by the views of an image.

    Raises:
        ValueError: sizes, views or sample_index are out of range or of the wrong shape, or the
            generator is not on the CPU. TypeError: sizes or sample_index are not integers.
        RuntimeError: the compiled library is not built.
    """
    _check_backend(backend)
    if backend == "compiled" and generator is None and torch.compiler.is_compiling():
        return sampler.draw_views(policy, torch.as_tensor(sizes), sample_index, views)
    extent, index, seed = prepare_draw(
        policy.max_translation, sizes, views, generator, sample_index
    )
    draw = sampler.sample_views if backend == "compiled" else sampling.sample_views
    return draw(policy, extent, index, seed, views)


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
    """Make normalised views of uint8 images, exactly as torchvision does on Pillow images.

    Equals, bit for bit with Pillow < 13 on x86-64, for every view and image:

        image = flip, reflected translation, resized_crop(..., size, BICUBIC)
        image = adjust_brightness, _contrast, _saturation, _hue in the drawn order
        view  = Normalize(mean, std)(ToTensor()(Grayscale(3)(image)))

    Args:
        images: uint8 [N, H, W, 3] or [N, 3, H, W], any strides, or N tensors [H, W, 3] whose sizes
            may differ. A tensor that fits both layouts is read as [N, H, W, 3].
        params: [V, N]; on the CPU, where values are checked, or on the images' GPU, where a check
            would stop the stream: impossible values are clamped there.
        size: side of the views, pixels.
        mean: three, in 0..1.
        std: three, positive.
        dtype: float32, float16 or bfloat16; float32 values rounded once.
        channels_last: each view [N, 3, size, size] in torch.channels_last memory.
        backend: "compiled", one pass in C++ or CUDA over all views; "reference", plain PyTorch on
            any device, slow. Their results are equal.

    Returns:
        [V, N, 3, size, size] on the device of the images; N = 0 gives an empty tensor.

    Raises:
        TypeError: images are not uint8, or dtype or a field of params has the wrong type.
        ValueError: shapes disagree, or a parameter is impossible for its image.
        RuntimeError: the compiled library is not built, or not for this device; or a CUDA graph is
            captured that would copy from the CPU.

    Deterministic: all randomness is in ``params``; the same bits on every device. Compiled, it
    holds one tile a CPU thread or CUDA block beside the output. Works under ``torch.compile`` and,
    with ``params`` on the GPU and images in one tensor, in CUDA graphs. Not differentiable.
    """
    pixels = _as_pixels(images)
    _check_output(size, mean, std, dtype, backend)
    if not len(pixels) or backend == "reference":
        params.validate(_sizes(pixels))
        device = pixels[0].device if len(pixels) else params.crop.device
        views = reference.make_views(pixels, params.to(device), size)
        return reference.normalize(views, mean, std, dtype, channels_last)
    device = pixels[0].device
    if params.crop.device.type != "cpu" and params.crop.device != device:
        params = params.to(device)
    # Made where it is needed: a copy from the host would wait for the stream.
    whole = torch.full((2,), size, dtype=torch.int32, device=params.crop.device)
    windows = nn.functional.pad(whole, (0, 2))
    return _compiled(pixels, params, windows, size, mean, std, dtype, channels_last)


def _compiled(
    pixels: Tensor | list[Tensor],
    params: ViewParams,
    windows: Tensor,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    make_table = level_table if torch.compiler.is_compiling() else _cached_level_table
    views = make_views(
        pixels,
        params,
        windows,
        _sizes(pixels),
        make_table(tuple(mean), tuple(std), dtype, pixels[0].device),
        size=size,
        channels_last=channels_last,
    )
    return views.movedim(-1, -3) if channels_last else views


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


def center_view(
    images: Tensor | Sequence[Tensor],
    *,
    resize: int | None,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str = "compiled",
) -> Tensor:
    """Make the one deterministic view of test images.

    Equals torchvision's ``Resize(resize, BICUBIC)``, ``CenterCrop(size)``, ``ToTensor()`` and
    ``Normalize(mean, std)`` on Pillow images, bit for bit; see ``augment``.

    Args:
        images: as in ``augment``.
        resize: length of the shorter side before the crop, at least ``size``; None takes images,
            which must be size x size then, as they are. A policy calls it ``test_resize``.
        size: side of the view, pixels.
        mean: three, in 0..1.
        std: three, positive.
        dtype: float32, float16 or bfloat16.
        channels_last: as in ``augment``.
        backend: as in ``augment``.

    Returns:
        [N, 3, size, size].

    Raises:
        TypeError: images are not uint8 or dtype is not one of the three.
        ValueError: shapes or sizes disagree.
        RuntimeError: the compiled library is not built, or not for this device.
    """
    pixels = _as_pixels(images)
    _check_output(size, mean, std, dtype, backend)
    if resize is None:
        for index, image in enumerate(pixels):
            if image.shape[:2] != (size, size):
                raise ValueError(
                    f"images must be {size} x {size} where resize is None, "
                    f"got {image.shape[0]} x {image.shape[1]} at {index}"
                )
    elif resize < size:
        raise ValueError(f"resize must be at least size = {size}, got {resize}")
    if not len(pixels) or backend == "reference":
        views = _reference_center(pixels, resize, size)
        return reference.normalize(views, mean, std, dtype, channels_last)
    sizes = _sizes(pixels)
    params = _untouched(sizes)
    resized = sizes if resize is None else resize * sizes // sizes.amin(1, keepdim=True)
    begin = ((resized - size).double() / 2).round().long()  # halves to even, as torchvision
    windows = torch.cat([resized, begin], 1).int()
    return _compiled(pixels, params, windows, size, mean, std, dtype, channels_last)[0]


def _reference_center(pixels: Tensor | list[Tensor], resize: int | None, size: int) -> Tensor:
    if resize is None:
        return pixels if isinstance(pixels, Tensor) else _stack(pixels, size)
    if isinstance(pixels, Tensor):
        return reference.center_crop(pixels, resize, size)
    return _stack([reference.center_crop(image[None], resize, size)[0] for image in pixels], size)


def _untouched(sizes: Tensor) -> ViewParams:
    """Parameters [1, N] of the whole images as they are."""
    lead = (1, len(sizes))
    no = torch.zeros(lead, dtype=torch.bool)
    one, zero = torch.ones(lead), torch.zeros(lead, dtype=torch.int32)
    return ViewParams(
        crop=torch.cat([torch.zeros_like(sizes), sizes], 1).int()[None],
        translate=zero[..., None].expand(*lead, 2),
        flip=no,
        jitter=no,
        order=torch.arange(4, dtype=torch.int32).expand(*lead, 4),
        brightness=one,
        contrast=one,
        saturation=one,
        hue=zero.float(),
        gray=no,
    )


class TwoViews(nn.Module):
    """Draw two views of each image and make them: uint8 images to [2, N, 3, size, size].

    Equals ``augment(images, sample_view_params(policy, sizes), ...)`` with the size, mean and std
    of the policy. Draws from the CPU generator, whatever device the images are on.

    Args:
        policy: a ``ViewPolicy`` or the name of one in ``POLICIES``.
        dtype: float32, float16 or bfloat16.
        channels_last: as in ``augment``.
        backend: as in ``augment``.
    """

    def __init__(
        self,
        policy: ViewPolicy | str,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        backend: str = "compiled",
    ) -> None:
        super().__init__()
        if isinstance(policy, str):
            if policy not in POLICIES:
                raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
            policy = POLICIES[policy]
        self.policy = policy
        self.dtype = dtype
        self.channels_last = channels_last
        self.backend = backend

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        *,
        generator: torch.Generator | None = None,
        sample_index: Tensor | None = None,
    ) -> Tensor:
        """Views of uint8 images; see ``augment`` and ``sample_view_params`` for the arguments."""
        pixels = _as_pixels(images)
        params = sample_view_params(
            self.policy,
            _sizes(pixels),
            generator=generator,
            sample_index=sample_index,
            backend=self.backend,
        )
        return augment(
            pixels,
            params,
            size=self.policy.size,
            mean=self.policy.mean,
            std=self.policy.std,
            dtype=self.dtype,
            channels_last=self.channels_last,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The policy."""
        return repr(self.policy)


def _as_pixels(images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Images with the channel last: a view [N, H, W, 3], or a list of [H, W, 3]."""
    if isinstance(images, Tensor):
        _require_uint8("images", images)
        if images.dim() == 4 and images.shape[-1] == 3:
            return images
        if images.dim() == 4 and images.shape[1] == 3:
            return images.movedim(1, -1)
        raise ValueError(
            f"images must be [N, H, W, 3], [N, 3, H, W] or a list of [H, W, 3], "
            f"got {list(images.shape)}"
        )
    for index, image in enumerate(images):
        _require_uint8(f"images[{index}]", image)
        if image.dim() != 3 or image.shape[-1] != 3:
            raise ValueError(f"images[{index}] must be [H, W, 3], got {list(image.shape)}")
        if image.device != images[0].device:
            raise ValueError(
                f"images[{index}] must be on the device of images[0], {images[0].device}, "
                f"got {image.device}"
            )
    return list(images)


def _require_uint8(name: str, image: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a uint8 tensor, got {type(image).__name__}")
    if image.dtype != torch.uint8:
        raise TypeError(f"{name} must be uint8, got {image.dtype}")


def _sizes(pixels: Tensor | list[Tensor]) -> Tensor:
    """[N, 2], height and width of each image."""
    if isinstance(pixels, Tensor):
        return torch.tensor(pixels.shape[1:3], device="cpu").expand(len(pixels), 2)
    sizes = [image.shape[:2] for image in pixels]
    return torch.tensor(sizes, dtype=torch.int64, device="cpu").view(-1, 2)


def _stack(pixels: list[Tensor], size: int) -> Tensor:
    """[N, size, size, 3], also of an empty list."""
    return torch.stack(pixels) if pixels else torch.empty(0, size, size, 3, dtype=torch.uint8)


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def _check_output(
    size: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, backend: str
) -> None:
    _check_backend(backend)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"mean and std must have three values each, got {mean} and {std}")
    if not all(value > 0 for value in std):
        raise ValueError(f"std must be positive, got {std}")
    if dtype not in _DTYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
