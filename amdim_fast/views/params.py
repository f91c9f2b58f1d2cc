"""What a view is: its parameters, the policies they are drawn from, and what a draw starts with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

VIEW_FIELDS: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "crop": (torch.int32, (4,)),
    "translate": (torch.int32, (2,)),
    "flip": (torch.bool, ()),
    "jitter": (torch.bool, ()),
    "order": (torch.int32, (4,)),
    "brightness": (torch.float32, ()),
    "contrast": (torch.float32, ()),
    "saturation": (torch.float32, ()),
    "hue": (torch.float32, ()),
    "gray": (torch.bool, ()),
}


@dataclass(frozen=True, eq=False)
class ViewParams:
    """Everything random about V views of N images; applying it is deterministic.

    The operations run in the order flip, translate, crop and resize, jitter, grey.

    Attributes:
        crop: int32 [V, N, 4], top, left, height, width in source pixels, after the flip.
        translate: int32 [V, N, 2], dy, dx in source pixels: content moves down and right, borders
            reflect without repeating the edge; (0, 0) is none.
        flip: bool [V, N], horizontal.
        jitter: bool [V, N], whether the next five fields apply.
        order: int32 [V, N, 4], permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue.
        brightness: float32 [V, N], factor, 1 is none.
        contrast: float32 [V, N], factor, 1 is none.
        saturation: float32 [V, N], factor, 1 is none.
        hue: float32 [V, N], turns, -0.5 to 0.5.
        gray: bool [V, N], grey-scale at the end.
    """

    crop: Tensor
    translate: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor

    @property
    def views(self) -> int:
        """V, the number of views of each image."""
        return self.flip.shape[0]

    def __len__(self) -> int:
        """N, the number of images."""
        return self.flip.shape[1]

    def __getitem__(self, images: int | slice | Sequence[int] | Tensor) -> ViewParams:
        """Parameters of some images; the leading dimensions stay [V, N']."""
        if isinstance(images, int):
            images = [range(len(self))[images]]
        return ViewParams(**{f.name: getattr(self, f.name)[:, images] for f in fields(self)})

    def to(self, device: torch.device | str) -> ViewParams:
        """The same parameters on another device."""
        return ViewParams(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def validate(self, sizes: Tensor | Sequence[Sequence[int]]) -> None:
        """Raise on parameters that cannot be applied to images of these sizes.

        Args:
            sizes: [N, 2] integers or N pairs, height and width of each image.

        Raises:
            TypeError: a field has the wrong dtype. ValueError: a field has the wrong shape, lies on
                another device than the first, or holds an impossible value; the message names the
                field and the first offending [view, image].
        """
        self.check_types()
        extent = _as_sizes(sizes).to(self.crop.device)
        if len(extent) != len(self):
            raise ValueError(f"params must describe {len(extent)} images, got {len(self)}")

        start, length = self.crop.long().split(2, dim=-1)
        inside = ((start >= 0) & (length >= 1) & (start + length <= extent)).all(-1)
        self._require("crop", inside, "(top, left, height, width) inside its image", extent)
        reflects = (self.translate.long().abs() < extent).all(-1)
        self._require("translate", reflects, "(dy, dx) smaller than its image", extent)
        numbered = torch.arange(4, dtype=torch.int32, device=self.order.device)
        is_permutation = (self.order.sort(-1).values == numbered).all(-1)
        self._require("order", is_permutation, "a permutation of 0, 1, 2, 3")
        for name in ("brightness", "contrast", "saturation"):
            factor = getattr(self, name)
            self._require(name, (factor >= 0) & factor.isfinite(), "finite and not negative")
        self._require("hue", self.hue.abs() <= 0.5, "between -0.5 and 0.5 turns")

    def check_types(self) -> None:
        """Raise as ``validate`` does on wrong dtypes, shapes and devices; reads no value."""
        leading = self.crop.shape[:2]
        for name, (dtype, trailing) in VIEW_FIELDS.items():
            value = getattr(self, name)
            if value.dtype != dtype:
                raise TypeError(f"params.{name} must have dtype {dtype}, got {value.dtype}")
            if self.crop.dim() != 3 or value.shape != (*leading, *trailing):
                wanted = ["V", "N", *map(str, trailing)]
                raise ValueError(
                    f"params.{name} must have shape [{', '.join(wanted)}], the same V and N in all "
                    f"fields, got {list(value.shape)} where params.crop has {list(self.crop.shape)}"
                )
            if value.device != self.crop.device:
                raise ValueError(
                    f"params.{name} must be on the device of params.crop, {self.crop.device}, "
                    f"got {value.device}"
                )

    def _require(self, name: str, good: Tensor, rule: str, extent: Tensor | None = None) -> None:
        if bool(good.all()):
            return
        view, image = (~good).nonzero()[0].tolist()
        if extent is not None:
            rule += " of {} x {} pixels".format(*extent[image].tolist())
        value = getattr(self, name)[view, image].tolist()
        raise ValueError(f"params.{name}[{view}, {image}] must be {rule}, got {value}")


@dataclass(frozen=True)
class ViewPolicy:
    """Distribution of views; make your own or take one of ``POLICIES``.

    Attributes:
        size: side of the square output, pixels.
        mean: subtracted from RGB in 0..1.
        std: what the difference is divided by.
        scale: bounds of the crop's share of the image area; None takes the whole image.
        ratio: bounds of the crop's width / height, drawn log-uniformly.
        max_translation: largest reflected translation, source pixels.
        translate_probability: chance to translate, then uniform over all offsets, none included.
        flip_probability: chance of a horizontal flip, drawn once for all views of an image.
        jitter_probability: chance of colour jitter.
        brightness, contrast, saturation: factor uniform in [max(0, 1 - x), 1 + x].
        hue: shift uniform in [-x, x] turns.
        gray_probability: chance of grey-scale.
        test_resize: shorter side before the centre crop of test images; None takes them as is.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: tuple[float, float] | None = (0.3, 1.0)
    ratio: tuple[float, float] = (0.7, 1.4)
    max_translation: int = 0
    translate_probability: float = 0.0
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    gray_probability: float = 0.25
    test_resize: int | None = None

    def __post_init__(self) -> None:
        for name in ("translate", "flip", "jitter", "gray"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise ValueError(f"{name}_probability must be between 0 and 1, got {value}")
        for name in ("brightness", "contrast", "saturation", "max_translation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be between 0 and 0.5 turns, got {self.hue}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale must be (low, high) with 0 < low <= high <= 1, got {self.scale}"
            )
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio must be (low, high) with 0 < low <= high, got {self.ratio}")


_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)

POLICIES: dict[str, ViewPolicy] = {
    # Digits have no mirror image; mean and std of 0.5 map grey levels to -1..1.
    "digits": ViewPolicy(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), flip_probability=0.0),
    "cifar": ViewPolicy(
        32, _CIFAR_MEAN, _CIFAR_STD, scale=None, max_translation=4, translate_probability=0.8
    ),
    "stl10": ViewPolicy(64, (0.43, 0.42, 0.39), (0.27, 0.26, 0.27), test_resize=70),
    "imagenet128": ViewPolicy(
        128, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), hue=0.1, test_resize=146
    ),
}


def prepare_draw(
    max_translation: int,
    sizes: Tensor | Sequence[Sequence[int]],
    views: int,
    generator: torch.Generator | None,
    sample_index: Tensor | None,
) -> tuple[Tensor, Tensor, int]:
    """Check what ``sample_view_params`` is given and draw its seed.

    Returns:
        int64 [N, 2] sizes, int64 [N] sample indices, both on the CPU, and the seed, 63 bits.
    """
    extent = _as_sizes(sizes).cpu()
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    if max_translation and bool((extent <= max_translation).any()):
        raise ValueError(
            f"sizes must be larger than the policy's max_translation of {max_translation} "
            f"pixels, got {extent.amin().item()}"
        )
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator must be on the CPU, where all parameters are drawn, got {generator.device}"
        )
    index = _as_sample_index(sample_index, len(extent))
    return extent, index, int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))


def _as_sizes(sizes: Tensor | Sequence[Sequence[int]]) -> Tensor:
    if not isinstance(sizes, Tensor):
        sizes = torch.tensor(sizes) if len(sizes) else torch.empty(0, 2, dtype=torch.long)
    if sizes.is_floating_point() or sizes.dtype == torch.bool:
        raise TypeError(f"sizes must be integers, got {sizes.dtype}")
    if sizes.dim() != 2 or sizes.shape[1] != 2:
        raise ValueError(f"sizes must be [N, 2], height and width, got {list(sizes.shape)}")
    if bool((sizes < 1).any()):
        raise ValueError(f"sizes must be at least one pixel, got {sizes.amin().item()}")
    return sizes.long()


def _as_sample_index(sample_index: Tensor | None, images: int) -> Tensor:
    if sample_index is None:
        return torch.arange(images, device="cpu")
    if sample_index.dtype != torch.int64:
        raise TypeError(f"sample_index must be int64, got {sample_index.dtype}")
    if sample_index.shape != (images,):
        raise ValueError(f"sample_index must be [{images}], got {list(sample_index.shape)}")
    if bool((sample_index < 0).any()):
        raise ValueError(f"sample_index must not be negative, got {sample_index.amin().item()}")
    return sample_index.cpu()
