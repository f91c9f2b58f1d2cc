"""The shapes that the contrastive ops return, for tracing: no plan is read for a ``keep``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from amdim_fast.distributed.agreement import resolve
from amdim_fast.nce.backend import resolve_backend
from amdim_fast.nce.kept import flat_sizes
from amdim_fast.nce.layout import passes_of
from amdim_fast.nce.op_inputs import Inputs, new_flat, new_gradients, read
from amdim_fast.nce.sizes import Sizes
from amdim_fast.nce.torch_passes import compute_dtype


def forward(*arguments: Any) -> tuple[Any, ...]:
    """Tensors as ``op_kernels.forward`` returns them."""
    inputs, (group_name, needs, keep, _) = read(arguments, 4)
    src = inputs.srcs[0]
    world_size = 1 if group_name is None else resolve(group_name).size()
    sizes = inputs.sizes(needs=needs, world_size=world_size)
    dtype = compute_dtype(src.dtype)
    own = sum(sizes.owns) // world_size
    totals, loss, log_prob, mean_sq, score = (
        src.new_empty(size, dtype=dtype)
        for size in (inputs.parts + 1, sizes.sets, own, sizes.sets, own)
    )
    sums = [src.new_empty(size, dtype=dtype) for size in (sum(sizes.sums), sizes.rows)]
    if group_name is None:
        saved = [*sums, *_stacks(inputs, sizes)]
    else:
        saved = [src.new_empty(sum(sizes.owns), dtype=dtype), *sums, *_sent(inputs, world_size)]
    if any(needs):
        saved += _kept(inputs, needs, sizes, world_size, keep)
    return totals, loss, log_prob, mean_sq, score, saved


def _stacks(inputs: Inputs, sizes: Sizes) -> list[Tensor]:
    """Stacked sources of the pairings that draw some."""
    src = inputs.srcs[0]
    passes = passes_of(resolve_backend(inputs.backend, src.dtype, src.device))
    dtype = passes.stack_dtype(src.device, src.dtype)
    wiring = inputs.wiring(())
    return [
        src.new_empty((shape.rows, shape.width), dtype=dtype)
        for index, shape in enumerate(sizes.shapes)
        if wiring.draws(index)
    ]


def _sent(inputs: Inputs, world_size: int) -> list[Tensor]:
    """Given and drawn sources of all ranks."""
    src = inputs.srcs[0]
    images, width = src.shape[1:]
    sets = [part.shape[0] for part in inputs.srcs] + [1] * len(inputs.picks)
    return [src.new_empty((count, world_size * images, width)) for count in sets]


def _kept(
    inputs: Inputs, needs: Sequence[bool], sizes: Sizes, world_size: int, keep: int | None
) -> list[Tensor]:
    """Kept scores."""
    src = inputs.srcs[0]
    shapes: Sequence[Any]
    if keep is None:
        layout = inputs.layout(one_pass=False, needs=needs, world_size=world_size)
        shapes = layout.kept_shapes()
    else:
        shapes = flat_sizes(inputs, sizes, keep)
    return [src.new_empty(shape, dtype=compute_dtype(src.dtype)) for shape in shapes]


def backward(*arguments: Any) -> list[Tensor]:
    """Tensors as ``op_kernels.backward`` returns them."""
    inputs, (_, needs, *_) = read(arguments, 9)
    return new_gradients(inputs, needs).wanted()


def objective(*arguments: Any) -> tuple[Tensor, ...]:
    """Tensors as ``op_kernels.objective`` returns them."""
    inputs, (needs, _) = read(arguments, 2)
    src = inputs.srcs[0]
    sets = inputs.sizes(needs=needs).sets
    found = [
        src.new_empty(shape, dtype=compute_dtype(src.dtype))
        for shape in ((), inputs.parts + 1, sets, sets)
    ]
    return (*found, new_flat(inputs, needs))


def scale(gradients: Tensor, upstream: Tensor, backend: str) -> None:
    """Nothing: it returns nothing."""
