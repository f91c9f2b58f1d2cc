"""What the contrastive bench measures: inputs, and the providers of the six costs of AMDIM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from amdim_fast.kernels.nce_tiles import Blocks
from torch import Tensor

from amdim_fast import LossMultiNCE, last_plan
from amdim_fast.nce import tiles
from amdim_fast.nce.plan import DEFAULT_MEMORY_BUDGET, plan_groups
from amdim_fast.nce.products import product
from amdim_fast.nce.reference import multiscale_nce
from amdim_fast.nce.torch_backend import work_rule

CLIP = 10.0
MAP_SIDES = (1, 5, 7)
FORWARD, FORWARD_BACKWARD = MODES = ("forward", "forward_backward")
# Room for work blocks of 4 MiB, and for no kept scores at the sizes measured.
RECOMPUTE_BUDGET = 12 * 2**20
COUNTED_IMAGES, COUNTED_WIDTH = 64, 8


@dataclass(frozen=True)
class Inputs:
    """Maps (r1, r5, r7) of two views, channels_last, and the picked 5x5 locations."""

    maps: tuple[Tensor, ...]
    picked: tuple[Tensor, Tensor]


def _loss(memory_budget: int | None, backend: str) -> Callable[[Inputs], tuple[Tensor, ...]]:
    module = LossMultiNCE(tclip=CLIP, memory_budget=memory_budget, backend=backend)
    return lambda inputs: module(*inputs.maps, locations=inputs.picked)


def _reference(inputs: Inputs) -> tuple[Tensor, ...]:
    r1_x1, r5_x1, r7_x1, r1_x2, r5_x2, r7_x2 = inputs.maps
    return multiscale_nce((r1_x1, r5_x1, r7_x1), (r1_x2, r5_x2, r7_x2), inputs.picked, clip=CLIP)


LOSSES: dict[str, Callable[[Inputs], tuple[Tensor, ...]]] = {
    "reference": _reference,
    "reference_compiled": torch.compile(_reference, dynamic=False),
    "torch": _loss(None, "torch"),
    "torch_recompute": _loss(RECOMPUTE_BUDGET, "torch"),
    "triton": _loss(None, "triton"),
    "triton_fused": _loss(None, "triton"),
    "triton_descriptors": _loss(None, "triton"),
    "triton_elementwise": _loss(None, "triton"),
}
# Whether the kernels multiply themselves and load through descriptors, where the provider says so
# instead of the block table.
FORCED = {
    "triton_fused": (True, False),
    "triton_descriptors": (True, True),
    "triton_elementwise": (False, False),
}
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gemms": lambda a, b: torch.mm(a, b.t()),
    "gemms_onednn": product,
}


def make_inputs(images: int, width: int, dtype: str, device: str) -> Inputs:
    """Standard normal features: scores of about unit size, well inside the clip."""
    generator = torch.Generator(device).manual_seed(0)
    maps = []
    for side in 2 * MAP_SIDES:
        features = torch.randn(
            (images, side, side, width),
            generator=generator,
            device=device,
            dtype=getattr(torch, dtype),
        )
        maps.append(features.permute(0, 3, 1, 2).requires_grad_())
    x1, x2 = (
        torch.randint(0, MAP_SIDES[1] ** 2, (images,), generator=generator, device=device)
        for _ in range(2)
    )
    return Inputs(tuple(maps), (x1, x2))


@contextmanager
def _forced(provider: str) -> Iterator[None]:
    """The block table's choices overruled for the providers that say so."""
    choose = tiles.choose

    def chosen(*key: Any) -> Blocks:
        fused, descriptors = FORCED[provider]
        blocks = choose(*key)
        forward, backward = (
            tile._replace(descriptors=descriptors) for tile in (blocks.forward, blocks.backward)
        )
        return blocks._replace(fused=fused, forward=forward, backward=backward)

    if provider in FORCED:
        tiles.choose = chosen
    try:
        yield
    finally:
        tiles.choose = choose


def run(provider: str, mode: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """The four values, and for forward_backward the gradients of the six maps."""
    with torch.set_grad_enabled(mode == FORWARD_BACKWARD), _forced(provider):
        values = LOSSES[provider](inputs)
        if mode == FORWARD:
            return tuple(values)
        return (*values, *torch.autograd.grad(torch.stack(values).sum(), inputs.maps))


def run_products(provider: str, mode: str, inputs: Inputs) -> None:
    """The bare products of the score matrices, in the blocks of the op; nothing else."""
    multiply = PRODUCTS[provider]
    r1, r5, r7, *_ = (
        features.detach().permute(0, 2, 3, 1).flatten(1, 2) for features in inputs.maps
    )
    source = torch.cat([r1[:, 0], r5[:, 0]])
    rows = [2 * len(r1), len(r1)]
    plans = plan_groups(
        [(count, len(r1), trg.shape[1]) for count, trg in zip(rows, (r5, r7), strict=True)],
        work_rule(r1.dtype, r1.device, r1.shape[-1], False),
        memory_budget=DEFAULT_MEMORY_BUDGET,
        with_grad=False,
    )
    for _direction in range(2):
        for count, trg, plan in zip(rows, (r5, r7), plans, strict=True):
            src = source[:count]
            for block in trg.split(plan.block_images):
                columns = block.flatten(0, 1)
                scores = multiply(src, columns)
                if mode == FORWARD_BACKWARD:
                    multiply(scores, columns.t())
                    multiply(scores.t(), src.t())


def describe_plan() -> str:
    """The mode of each group in the latest call of LossMultiNCE."""
    plan = last_plan()
    return "" if plan is None else "plan: " + ", ".join(group.mode for group in plan.groups)


def stored_bytes_of_reference(images: int, dtype: str) -> int:
    """Bytes of [B, B, L] tensors the reference holds for its backward, calculated for B = images.

    Counted where it is small, each storage once, and scaled by B squared; D does not matter.
    """
    inputs = make_inputs(COUNTED_IMAGES, COUNTED_WIDTH, dtype, "cpu")
    smallest = COUNTED_IMAGES**2 * MAP_SIDES[1] ** 2 * inputs.maps[0].element_size()
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() >= smallest:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        values = _reference(inputs)
    del values
    return sum(s.nbytes() for s in storages.values()) * images**2 // COUNTED_IMAGES**2
