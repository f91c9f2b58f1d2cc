"""What a view is: its parameters, and the policies that they are drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

LARGEST_SIDE = 2**24 - 1  # pixels of an image

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

    The operations run in this order: flip, translate, crop and resize, jitter, grayscale.

    Attributes:
        crop: int32 [V, N, 4], top, left, height, width in source pixels, after the flip.
        translate: int32 [V, N, 2], dy, dx in source pixels: positive values move the content down
            and right; borders reflect without repeating the edge.
        flip: bool [V, N], horizontal.
        jitter: bool [V, N], whether the next five fields apply.
        order: int32 [V, N, 4], permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue.
        brightness: float32 [V, N], factor; 1 changes nothing.
        contrast: float32 [V, N], factor; 1 changes nothing.
        saturation: float32 [V, N], factor; 1 changes nothing.
        hue: float32 [V, N], shift in turns, -0.5 to 0.5.
        gray: bool [V, N], whether grayscale comes last.
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
        """Parameters of some images; every field keeps its two leading dimensions."""
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
            TypeError: a field has the wrong dtype. ValueError: a field has the wrong shape, is not
                on the device of ``crop``, or holds an impossible value; the message names the field
                and the first bad [view, image].
        """
        self.check_types()
        extent = as_sizes(sizes).to(self.crop.device)
        if len(extent) != len(self):
            raise ValueError(
                f"len(params) is {len(self)}; it must be {len(extent)}, the number of images"
            )

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
        """Raise on wrong dtypes, shapes and devices, as ``validate`` does; reads no values."""
        leading = self.crop.shape[:2]
        for name, (dtype, trailing) in VIEW_FIELDS.items():
            value = getattr(self, name)
            if value.dtype != dtype:
                raise TypeError(f"params.{name} is {value.dtype}; it must be {dtype}")
            if self.crop.dim() != 3 or value.shape != (*leading, *trailing):
                wanted = ["V", "N", *map(str, trailing)]
                raise ValueError(
                    f"params.{name} is {list(value.shape)}, params.crop {list(self.crop.shape)};"
                    f" it must be [{', '.join(wanted)}], the same V and N in all fields"
                )
            if value.device != self.crop.device:
                raise ValueError(
                    f"params.{name} is on {value.device}; it must be on the device of params.crop,"
                    f" {self.crop.device}"
                )

    def _require(self, name: str, good: Tensor, rule: str, extent: Tensor | None = None) -> None:
        if bool(good.all()):
            return
        view, image = (~good).nonzero()[0].tolist()
        if extent is not None:
            rule += " of {} x {} pixels".format(*extent[image].tolist())
        value = getattr(self, name)[view, image].tolist()
        raise ValueError(f"params.{name}[{view}, {image}] is {value}; it must be {rule}")


@dataclass(frozen=True)
class ViewPolicy:
    """Distribution of views; make your own or take one of ``POLICIES``.

    Attributes:
        size: side of the square output, pixels.
        mean: of each channel, subtracted from levels in 0..1.
        std: of each channel, divides the difference.
        scale: bounds of the crop's share of the image area; None takes the whole image.
        ratio: bounds of the crop's width / height, drawn log-uniformly.
        max_translation: largest reflected translation, source pixels.
        translate_probability: chance to translate, uniformly over all offsets, (0, 0) included.
        flip_probability: chance of a horizontal flip, drawn once for all views of an image.
        jitter_probability: chance of color jitter.
        brightness, contrast, saturation: factor uniform in [max(0, 1 - x), 1 + x].
        hue: shift uniform in [-x, x] turns.
        gray_probability: chance of grayscale.
        test_resize: shorter side of test images before the center crop, pixels; None is ``size``,
            which leaves those of size x size as they are.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
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
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, Sequence) or not values or len(values) != len(self.mean):
                raise ValueError(
                    f"{name} is {values!r}; mean and std must have a number for each channel"
                )
        for name in ("translate", "flip", "jitter", "gray"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise ValueError(f"{name}_probability is {value}; it must be between 0 and 1")
        for name in ("brightness", "contrast", "saturation", "max_translation"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be finite and not negative")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue is {self.hue}; it must be between 0 and 0.5 turns")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale is {self.scale}; it must be (low, high) with 0 < low <= high <= 1"
            )
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is {self.ratio}; it must be (low, high) with 0 < low <= high")

    @property
    def channels(self) -> int:
        """C, the number of channels of the images."""
        return len(self.mean)

    @property
    def least_side(self) -> int:
        """The shortest side of an image that can be moved by ``max_translation``, pixels."""
        return self.max_translation + 1

    def adapted(self, *, size: int | None = None, channels: int | None = None) -> ViewPolicy:
        """The same views of another size, or of images of another number of channels.

        ``test_resize`` keeps its ratio to the size. Channels other than the policy's own all get
        the mean of its means, and of its stds.

        Raises:
            ValueError: a number is not whole, or below 1.
        """
        for name, value in (("size", size), ("channels", channels)):
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more")
        changed: dict[str, Any] = {}
        if size is not None and size != self.size:
            changed["size"] = size
            if self.test_resize is not None:
                changed["test_resize"] = max(size, round(self.test_resize * size / self.size))
        if channels is not None and channels != self.channels:
            for name in ("mean", "std"):
                values = getattr(self, name)
                changed[name] = (sum(values) / len(values),) * channels
        return replace(self, **changed)


_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)

POLICIES: dict[str, ViewPolicy] = {
    # A mirrored digit is no digit; mean and std of 0.5 map gray levels to -1..1.
    "digits": ViewPolicy(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), flip_probability=0.0),
    "cifar": ViewPolicy(
        32, _CIFAR_MEAN, _CIFAR_STD, scale=None, max_translation=4, translate_probability=0.8
    ),
    "stl10": ViewPolicy(64, (0.43, 0.42, 0.39), (0.27, 0.26, 0.27), test_resize=70),
    "imagenet128": ViewPolicy(
        128, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), hue=0.1, test_resize=146
    ),
}


def as_sizes(sizes: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Heights and widths as int64 [N, 2]; raises on other shapes, types, empty and huge images."""
    if not isinstance(sizes, Tensor):
        try:
            sizes = torch.tensor(sizes) if len(sizes) else torch.empty(0, 2, dtype=torch.long)
        except (TypeError, ValueError):
            raise TypeError(
                f"sizes is {sizes!r:.100}; it must be pairs of whole numbers, height and width, of"
                f" at most {LARGEST_SIDE} pixels"
            ) from None
    if sizes.is_floating_point() or sizes.dtype == torch.bool:
        raise TypeError(f"sizes is {sizes.dtype}; it must hold integers")
    if sizes.dim() != 2 or sizes.shape[1] != 2:
        raise ValueError(f"sizes is {list(sizes.shape)}; it must be [N, 2], height and width")
    if bool((sizes < 1).any()):
        raise ValueError(f"min(sizes) is {sizes.amin().item()}; it must be at least 1 pixel")
    if bool((sizes > LARGEST_SIDE).any()):
        raise ValueError(
            f"max(sizes) is {sizes.amax().item()}; it must be at most {LARGEST_SIDE} pixels"
        )
    return sizes.long()
