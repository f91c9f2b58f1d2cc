"""A row of residual layers forward and backward, below autograd."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.model.residual import passes
from amdim_fast.model.residual.geometry import Geometry, map_of, matrix_of, new_map, rows_of


class Weights(NamedTuple):
    """Weights of a row of layers: of the first convolutions and of the second ones."""

    conv1: list[Tensor]
    conv2: list[Tensor]

    def rounded(self, dtype: torch.dtype) -> Weights:
        """In channels_last and of this dtype."""
        found = passes.rounded([*self.conv1, *self.conv2], dtype)
        return Weights(found[: len(self.conv1)], found[len(self.conv1) :])


class Kept(NamedTuple):
    """What the backward finds besides x and the weights."""

    inputs: list[Tensor]  # [B, C', H', W'] of all layers but the first
    hidden: list[Tensor]  # [B H' W', C'] results of ReLUs, of the first layers
    rounded: list[Tensor]  # conv1 and conv2, where their dtype is another one than x's


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    conv1: list[bool]
    conv2: list[bool]


class Gradients(NamedTuple):
    """Gradients, None where they are not wanted."""

    x: list[Tensor | None]  # one
    conv1: list[Tensor | None]
    conv2: list[Tensor | None]


def forward(
    x: Tensor, weights: Weights, geometry: Geometry, *, keep_hidden: bool, backend: str
) -> tuple[Tensor, Kept]:
    """The result, and what the backward needs."""
    given, weights = weights, weights.rounded(x.dtype)
    out, kept = x, Kept([], [], [])
    for layer, (conv1, conv2) in enumerate(zip(*weights, strict=True)):
        if layer:
            kept.inputs.append(out)
        if layer or geometry.is_plain:
            hidden = passes.relu_product(rows_of(out), matrix_of(conv1))
            out = new_map(x, geometry.out_shape).copy_(out)
        else:
            hidden = passes.wide_product(x, conv1, geometry)
            out = passes.shortcut(x, hidden, geometry, backend)
        passes.multiply_into(rows_of(out), hidden, matrix_of(conv2).t(), add=True)
        if keep_hidden or not (layer or geometry.is_plain):
            kept.hidden.append(hidden)
    if given.conv1[0].dtype != x.dtype:
        kept.rounded.extend([*weights.conv1, *weights.conv2])
    return out, kept


def backward(
    grad: Tensor,
    x: Tensor,
    given: Weights,
    kept: Kept,
    geometry: Geometry,
    needs: Needs,
    backend: str,
) -> Gradients:
    """The gradients that are wanted, those of weights in the weights' dtype."""
    count, dtype = len(given.conv1), given.conv1[0].dtype
    made = kept.rounded
    weights = Weights(made[:count], made[count:]) if made else given.rounded(x.dtype)
    found = Gradients([None], [None] * count, [None] * count)
    rows, is_own = rows_of(grad.contiguous(memory_format=torch.channels_last)), False
    for layer in reversed(range(count)):
        source = kept.inputs[layer - 1] if layer else x
        conv1, conv2 = matrix_of(weights.conv1[layer]), matrix_of(weights.conv2[layer])
        if layer < len(kept.hidden):
            hidden = kept.hidden[layer]
        else:
            hidden = passes.relu_product(rows_of(source), conv1)
        if needs.conv2[layer]:
            found.conv2[layer] = map_of(passes.product(rows.t(), hidden, dtype), 1, 1)
        needs_source = bool(layer) or needs.x
        if not (needs_source or needs.conv1[layer]):
            break
        of_hidden = passes.masked(passes.product(rows, conv2, x.dtype), hidden)
        if layer or geometry.is_plain:
            if needs.conv1[layer]:
                of_weight = passes.product(of_hidden.t(), rows_of(source), dtype)
                found.conv1[layer] = map_of(of_weight, 1, 1)
            if needs_source:
                rows, is_own = (rows if is_own else rows.clone()), True
                passes.multiply_into(rows, of_hidden, conv1, add=True)
                found.x[0] = map_of(rows, *geometry.out_shape[2:])
        else:
            found.x[0], found.conv1[0] = passes.wide_gradients(
                of_hidden,
                x,
                weights.conv1[0],
                geometry,
                of_x=needs.x,
                of_weight=dtype if needs.conv1[0] else None,
            )
            if found.x[0] is not None:
                passes.add_shortcut_gradient(found.x[0], rows, geometry, backend)
    return found
