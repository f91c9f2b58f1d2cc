"""What of a call depends on shapes and options alone, computed once for each signature."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import ModuleType

import torch
from torch import Tensor

from amdim_fast.nce import torch_passes
from amdim_fast.nce.backend import resolve_backend
from amdim_fast.nce.costs import launches_of, small_bytes_of, waiting_bytes_of
from amdim_fast.nce.pairing import Options, Pairing, Results
from amdim_fast.nce.plan import KEEP, Plan, default_budget, plan_pairings
from amdim_fast.nce.products import product_library
from amdim_fast.nce.scratch import Scratch
from amdim_fast.nce.sizes import sizes_of
from amdim_fast.nce.way import PairingShape
from amdim_fast.nce.wiring import Finish, Wiring


@dataclass(frozen=True)
class Layout:
    """Shapes, places and plan of a call.

    A pairing is one set of targets [N, L, D] with the sources [S, B, D] stacked against them. Its
    last source set may be drawn: one location per image of the targets of another pairing.

    Attributes:
        passes: module of the passes, ``torch_passes`` or ``triton_passes``.
        dtype: of scores and sums.
        options: of the call.
        shapes: of each pairing.
        wiring: which sources meet which targets.
        finishes: how gradients of sources get to their place.
        plan: of the call.
        first_sets: place of each pairing's sets in the call.
        first_owns: place of each pairing's own scores in flat results.
        first_sums: place of each pairing's log-sums in flat results.
        sizes: entries of score, of neg and of row_loss.
    """

    passes: ModuleType
    dtype: torch.dtype
    options: Options
    shapes: tuple[PairingShape, ...]
    wiring: Wiring
    finishes: tuple[Finish, ...]
    plan: Plan
    first_sets: tuple[int, ...]
    first_owns: tuple[int, ...]
    first_sums: tuple[int, ...]
    sizes: tuple[int, int, int]

    @property
    def images(self) -> int:
        """B."""
        return self.shapes[0].images

    @property
    def sets(self) -> int:
        """Source sets of all pairings."""
        return sum(shape.sets for shape in self.shapes)

    def new_results(self, like: Tensor) -> Results:
        """Room for the results."""
        score, neg, rows = self.sizes
        sizes = score, score, neg, rows, rows
        return Results(*[like.new_empty(size, dtype=self.dtype) for size in sizes])

    def kept_shapes(self) -> list[tuple[int, int]]:
        """Shapes of the scores that the forward keeps."""
        return [
            self.passes.block_shape(shape.rows, shape.columns)
            for shape, plan in zip(self.shapes, self.plan.pairings, strict=True)
            if plan.mode == KEEP
        ]

    def pairing(
        self, index: int, src: Tensor, trg: Tensor, scratch: Scratch, image_offset: int = 0
    ) -> Pairing:
        """Pairing ``index`` with its stacked sources [S * B, D], and the call's scratch memory."""
        return Pairing(
            src,
            trg,
            self.shapes[index],
            self.plan.pairings[index],
            self.options,
            self.first_sets[index],
            self.first_owns[index],
            self.first_sums[index],
            image_offset,
            scratch,
        )


_layouts: dict[Hashable, Layout] = {}
MOST_LAYOUTS = 1024


def layout_of(
    srcs: Sequence[Tensor],
    trgs: Sequence[Tensor],
    wiring: Wiring,
    options: Options,
    *,
    backend: str,
    memory_budget: int | None,
    one_pass: bool,
    world_size: int = 1,
    keep: int | None = None,
) -> Layout:
    """The layout of a call with these tensors.

    Args:
        srcs: given sources, [S, B, D] each, of this rank.
        trgs: targets of each pairing, [B, L, D].
        wiring: which sources meet which targets, and which want gradients.
        options: of the call.
        backend: "auto", "torch" or "triton".
        memory_budget: bytes, or None for the default.
        one_pass: whether the call makes its own gradients.
        world_size: ranks whose sources meet these targets.
        keep: as in ``plan_pairings``.
    """
    src = srcs[0]
    backend = resolve_backend(backend, src.dtype, src.device)
    passes = passes_of(backend)
    way = passes.way_of(src.device, src.dtype, src.shape[2], options)
    src_shapes = tuple([tensor.shape for tensor in srcs])
    trg_shapes = tuple([tensor.shape for tensor in trgs])
    key = (
        *(src_shapes, trg_shapes, src.device, way, options, wiring),
        *(memory_budget, one_pass, world_size, keep),
    )
    known = all(type(size) is int for shape in (*src_shapes, *trg_shapes) for size in shape)
    layout = _layouts.get(key) if known else None
    if layout is not None:
        return layout
    sizes = sizes_of(srcs, trgs, wiring, same_location=options.same_location, world_size=world_size)
    shapes = sizes.shapes
    budget = default_budget(shapes, way) if memory_budget is None else memory_budget
    plans = plan_pairings(
        shapes,
        way,
        memory_budget=budget,
        one_pass=one_pass,
        with_grad=any(wiring.needs),
        keep=keep,
    )
    multiplications, rows = max(
        (plan.chunk_rows * part.columns * part.width, part.columns)
        for plan, part in zip(plans, shapes, strict=True)
    )
    library = product_library(src.device, src.dtype, backend, multiplications, rows)
    library += way.limbs * " in limbs"
    kernels = passes.describe(way, src.device, src.shape[2], plans, options)
    launches = None
    if backend == "triton" and not way.limbs and src.dtype != torch.float16 and world_size == 1:
        launches = launches_of(plans, shapes, wiring, scaled=one_pass and any(wiring.needs))
    small = small_bytes_of(shapes, way, wiring) + waiting_bytes_of(plans, shapes, way)
    layout = Layout(
        passes,
        torch_passes.compute_dtype(src.dtype),
        options,
        shapes,
        wiring,
        tuple(wiring.finishes()),
        Plan(backend, library, plans, budget, small, launches, kernels),
        _starts([shape.sets for shape in shapes]),
        _starts(sizes.owns),
        _starts(sizes.sums),
        (sum(sizes.owns), sum(sizes.sums), sizes.rows),
    )
    if known:
        if len(_layouts) >= MOST_LAYOUTS:
            _layouts.clear()
        _layouts[key] = layout
    return layout


def _starts(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(accumulate(sizes[:-1], initial=0))


def passes_of(backend: str) -> ModuleType:
    """The module of the passes; triton is loaded only if it is used."""
    if backend == "torch":
        return torch_passes
    from amdim_fast.nce import triton_passes

    return triton_passes
