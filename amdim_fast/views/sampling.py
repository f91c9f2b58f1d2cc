"""How views are drawn: ``sample_view_params`` and its compiled ops.

``amdim_fast::sample_views`` draws what ``reference_sampling.sample_views`` draws, value for value,
and ``draw_records`` the same as records of the op that makes views, on the device of the images.
``draw_views`` and ``draw_view_records`` also check their arguments and draw the seed, so that
torch.compile can put them into a graph, which then draws the same parameters as eager execution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from amdim_fast.checks import whole_number
from amdim_fast.views import compiled, reference_sampling
from amdim_fast.views.compiled import LIBRARY
from amdim_fast.views.op import RECORD_WORDS
from amdim_fast.views.params import VIEW_FIELDS, ViewParams, ViewPolicy, as_sizes

MOST_VIEWS = 2**20
# The place of max_translation in _policy_values.
_MAX_TRANSLATION = 7

LIBRARY.define(
    "draw_views(Tensor sizes, Tensor? sample_index, float[] policy, int views) -> "
    f"({', '.join(f'Tensor {name}' for name in VIEW_FIELDS)})",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded),
)
LIBRARY.define(
    "draw_view_records(Tensor images, Tensor sizes, Tensor? sample_index, float[] policy,"
    " int views, int size) -> (Tensor records, Tensor layout)",
    tags=(
        *(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded),
        *((torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()),
    ),
)


def sample_view_params(
    policy: ViewPolicy,
    sizes: Tensor | Sequence[Sequence[int]],
    *,
    views: int = 2,
    generator: torch.Generator | None = None,
    sample_index: Tensor | None = None,
    backend: str = "compiled",
) -> ViewParams:
    """Draw the parameters of V views of each of N images, on the CPU.

    The crop follows torchvision's ``RandomResizedCrop.get_params``: ten tries, then the largest
    central crop of an allowed ratio. Jitter follows its ``ColorJitter`` under ``RandomApply``.

    Args:
        policy: the distribution.
        sizes: [N, 2] integers or N pairs, height and width of each image.
        views: V.
        generator: CPU generator, the default one if None; exactly one 63-bit seed is drawn.
        sample_index: int64 [N], not negative, default 0 to N - 1: the index of each image in the
            whole data set, even if this process holds only a part of it. With the same seed, an
            index gets the same parameters in every batch.
        backend: "compiled" or "reference"; both draw the same values.

    Returns:
        Parameters of shape [V, N, ...] on the CPU; the flip is shared by the views of an image.

    Raises:
        ValueError: sizes, views or sample_index is out of range or of the wrong shape, or the
            generator is not on the CPU. TypeError: sizes or sample_index does not hold integers, or
            an argument is of another type.
        RuntimeError: the compiled library is not built.
    """
    compiled.check_backend(backend)
    check_policy(policy)
    if backend == "compiled" and generator is None and torch.compiler.is_compiling():
        return _draw_views_in_graph(policy, torch.as_tensor(sizes), sample_index, views)
    extent, index, seed = _prepare_draw(
        policy.max_translation, sizes, views, generator, sample_index
    )
    draw = sample_views if backend == "compiled" else reference_sampling.sample_views
    return draw(policy, extent, index, seed, views)


def check_policy(policy: ViewPolicy) -> None:
    """Raise TypeError unless it is a ViewPolicy."""
    if not isinstance(policy, ViewPolicy):
        raise TypeError(
            f"policy is {policy!r:.100}; it must be a ViewPolicy, such as POLICIES['stl10']"
        )


def sample_views(
    policy: ViewPolicy, sizes: Tensor, sample_index: Tensor, seed: int, views: int
) -> ViewParams:
    """``reference_sampling.sample_views``, compiled."""
    compiled.require("cpu")
    return ViewParams(*_sample(_policy_values(policy), sizes, sample_index, seed, views))


def draw_records(
    images: Tensor,
    policy: ViewPolicy,
    sizes: Tensor,
    *,
    views: int = 2,
    generator: torch.Generator | None = None,
    sample_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw what ``sample_view_params`` draws, as records on the device of ``images``.

    On CUDA they are drawn there, from arguments of a launch for each 144 images: with
    ``sample_index`` on the CPU nothing is copied, and the host does not wait.

    Args:
        images: on the device that the records are for; not read.
        policy: the distribution; views have its size.
        sizes: int64 [N, 2] on the CPU, height and width of each image.
        views: V.
        generator: as in ``sample_view_params``.
        sample_index: as in ``sample_view_params``.

    Returns:
        Records, int32 [V, N, 19], and where each of N images that follow one another begins, with
        its height and width: int64 [N, 3].

    Raises:
        ValueError, TypeError, RuntimeError: as ``sample_view_params``.
    """
    compiled.require(images.device.type)
    values = _policy_values(policy)
    if sample_index is not None:
        _check_kind(sample_index, len(sizes))
    if generator is None:
        found: tuple[Tensor, Tensor] = torch.ops.amdim_fast.draw_view_records(
            images, sizes, sample_index, values, views, policy.size
        )
        return found
    extent, index, seed = _prepare_draw(
        policy.max_translation, sizes, views, generator, sample_index
    )
    return _records(images, extent, index, values, seed, views, policy.size)


def _draw_views_in_graph(
    policy: ViewPolicy, sizes: Tensor, sample_index: Tensor | None, views: int
) -> ViewParams:
    compiled.require("cpu")
    values = _policy_values(policy)
    return ViewParams(*torch.ops.amdim_fast.draw_views(sizes.cpu(), sample_index, values, views))


def _prepare_draw(
    max_translation: int,
    sizes: Tensor | Sequence[Sequence[int]],
    views: int,
    generator: torch.Generator | None,
    sample_index: Tensor | None,
) -> tuple[Tensor, Tensor, int]:
    """Checked sizes, int64 [N, 2], and sample indices, int64 [N], on the CPU, and the seed."""
    extent = as_sizes(sizes).cpu()
    whole_number("views", views, most=MOST_VIEWS)
    if max_translation and bool((extent <= max_translation).any()):
        raise ValueError(
            f"min(sizes) is {extent.amin().item()}; it must be larger than the policy's"
            f" max_translation, {max_translation} pixels"
        )
    device = getattr(generator, "device", None)
    if generator is not None and not isinstance(device, torch.device):
        raise TypeError(f"generator is of type {type(generator).__name__}; it must be a generator")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator is on {generator.device}; it must be on the CPU, where all parameters are"
            " drawn"
        )
    index = _as_sample_index(sample_index, len(extent))
    return extent, index, int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))


def _as_sample_index(sample_index: Tensor | None, images: int) -> Tensor:
    if sample_index is None:
        return torch.arange(images, device="cpu")
    _check_kind(sample_index, images)
    if sample_index.shape != (images,):
        raise ValueError(f"sample_index is {list(sample_index.shape)}; it must be [{images}]")
    if bool((sample_index < 0).any()):
        raise ValueError(
            f"min(sample_index) is {sample_index.amin().item()}; it must not be negative"
        )
    return sample_index.cpu()


def _check_kind(sample_index: Tensor, images: int) -> None:
    if not isinstance(sample_index, Tensor) or sample_index.dtype != torch.int64:
        kind = getattr(sample_index, "dtype", f"of type {type(sample_index).__name__}")
        raise TypeError(f"sample_index is {kind}; it must be int64 [{images}]")


def _policy_values(policy: ViewPolicy) -> list[float]:
    """What the ops take as ``policy``, in the order of ``Policy`` in csrc/shared/sampling.h."""
    low, high = policy.scale or (0.0, 0.0)
    log_low, log_high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    amounts = (policy.brightness, policy.contrast, policy.saturation)
    factor_low = [max(0.0, 1.0 - amount) for amount in amounts]
    return [
        *(float(policy.scale is not None), low, high - low),
        *(log_low, log_high - log_low, *policy.ratio),
        *(policy.max_translation, policy.translate_probability, policy.flip_probability),
        *(policy.jitter_probability, policy.gray_probability, *factor_low),
        *(1.0 + amount - start for amount, start in zip(amounts, factor_low, strict=True)),
        policy.hue,
    ]


def _sample(
    values: list[float], sizes: Tensor, sample_index: Tensor, seed: int, views: int
) -> tuple[Tensor, ...]:
    fields: tuple[Tensor, ...] = torch.ops.amdim_fast.sample_views(
        sizes.contiguous(),
        sample_index.contiguous(),
        torch.tensor(values, dtype=torch.float64, device="cpu"),
        seed,
        views,
    )
    return fields


def _draw(
    sizes: Tensor, sample_index: Tensor | None, values: list[float], views: int
) -> tuple[Tensor, ...]:
    max_translation = int(values[_MAX_TRANSLATION])
    extent, index, seed = _prepare_draw(max_translation, sizes, views, None, sample_index)
    return _sample(values, extent, index, seed, views)


def _records(
    images: Tensor,
    sizes: Tensor,
    sample_index: Tensor,
    values: list[float],
    seed: int,
    views: int,
    size: int,
) -> tuple[Tensor, Tensor]:
    policy = torch.tensor(values, dtype=torch.float64, device="cpu")
    found: tuple[Tensor, Tensor] = torch.ops.amdim_fast.draw_records(
        images, sizes.contiguous(), sample_index.contiguous(), policy, seed, views, size
    )
    return found


def _draw_records(
    images: Tensor,
    sizes: Tensor,
    sample_index: Tensor | None,
    values: list[float],
    views: int,
    size: int,
) -> tuple[Tensor, Tensor]:
    max_translation = int(values[_MAX_TRANSLATION])
    extent, index, seed = _prepare_draw(max_translation, sizes, views, None, sample_index)
    return _records(images, extent, index, values, seed, views, size)


def _fake_draw_records(
    images: Tensor,
    sizes: Tensor,
    sample_index: Tensor | None,
    values: list[float],
    views: int,
    size: int,
) -> tuple[Tensor, Tensor]:
    count = sizes.shape[0]
    return (
        images.new_empty((views, count, RECORD_WORDS), dtype=torch.int32),
        images.new_empty((count, 3), dtype=torch.int64),
    )


def _fake_draw(
    sizes: Tensor, sample_index: Tensor | None, values: list[float], views: int
) -> tuple[Tensor, ...]:
    lead = (views, sizes.shape[0])
    return tuple(
        sizes.new_empty((*lead, *trailing), dtype=dtype) for dtype, trailing in VIEW_FIELDS.values()
    )


LIBRARY.impl("draw_views", _draw, "CPU")
torch.library.register_fake("amdim_fast::draw_views", _fake_draw, lib=LIBRARY)
for key in ("CPU", "CUDA"):
    LIBRARY.impl("draw_view_records", _draw_records, key)
torch.library.register_fake("amdim_fast::draw_view_records", _fake_draw_records, lib=LIBRARY)
