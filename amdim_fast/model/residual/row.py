"""A row of residual layers forward and backward, below autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from amdim_fast.model.residual import passes
from amdim_fast.model.residual.geometry import (
    Geometry,
    columns_of,
    map_of,
    matrix_of,
    rows_of,
    weight_of,
)

T = TypeVar("T")


class Weights(NamedTuple):
    """Weights of a row of layers."""

    conv1: list[Tensor]
    conv2: list[Tensor]
    shortcut: list[Tensor]  # weight and bias of the first layer's, where it is a convolution

    @property
    def flat(self) -> list[Tensor]:
        """All tensors, one after the other."""
        return [*self.conv1, *self.conv2, *self.shortcut]

    @property
    def lengths(self) -> list[int]:
        """Of the lists."""
        return [len(part) for part in self]

    def rounded(self, dtype: torch.dtype) -> Weights:
        """In this dtype and channels_last."""
        return Weights(*split(passes.rounded(self.flat, dtype), self.lengths))


class Kept(NamedTuple):
    """What the backward finds besides x and the weights."""

    inputs: list[Tensor]  # [B, C', H', W'] of all layers but the first
    hidden: list[Tensor]  # [B H' W', C'] results of ReLUs, of the first layers
    rounded: list[Tensor]  # all weights in the dtype of x, where theirs is another


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    conv1: list[bool]
    conv2: list[bool]
    shortcut: list[bool]


class Gradients(NamedTuple):
    """Gradients; None where they are not wanted."""

    x: list[Tensor | None]  # one
    conv1: list[Tensor | None]
    conv2: list[Tensor | None]
    shortcut: list[Tensor | None]


def split(values: Sequence[T], lengths: Sequence[int]) -> list[list[T]]:
    """Lists of these lengths, one after the other."""
    rest = iter(values)
    return [[next(rest) for _ in range(length)] for length in lengths]


def forward(
    x: Tensor, given: Weights, geometry: Geometry, *, keep_hidden: bool, backend: str
) -> tuple[Tensor, Kept]:
    """The result, and what the backward needs."""
    weights = given.rounded(x.dtype)
    out, kept = x, Kept([], [], [])
    for layer, (conv1, conv2) in enumerate(zip(weights.conv1, weights.conv2, strict=True)):
        is_plain = bool(layer) or geometry.is_plain
        if layer:
            kept.inputs.append(out)
        if is_plain:
            hidden = passes.relu_product(rows_of(out), matrix_of(conv1))
            rows = passes.added_product(hidden, matrix_of(conv2).t(), rows_of(out), backend)
            out = map_of(rows, *geometry.out_shape[2:])
        elif geometry.projects:
            columns, (matrix, bias) = columns_of(x, geometry), weights.shortcut
            hidden = passes.relu_product(columns, matrix_of(conv1))
            rows = torch.addmm(bias, columns, matrix_of(matrix).t())
            out = map_of(rows, *geometry.out_shape[2:])
        else:
            hidden = passes.wide_product(x, conv1, geometry)
            out = passes.shortcut(x, hidden, geometry, backend)
        if not is_plain:
            passes.multiply_into(rows_of(out), hidden, matrix_of(conv2).t(), add=True)
        if keep_hidden or not is_plain:
            kept.hidden.append(hidden)
    if given.conv1[0].dtype != x.dtype:
        kept.rounded.extend(weights.flat)
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
    weights = Weights(*split(made, given.lengths)) if made else given.rounded(x.dtype)
    found = Gradients([None], [None] * count, [None] * count, [None] * len(given.shortcut))
    rows, is_own = rows_of(grad.contiguous(memory_format=torch.channels_last)), False
    for layer in reversed(range(count)):
        source = kept.inputs[layer - 1] if layer else x
        conv1, conv2 = matrix_of(weights.conv1[layer]), matrix_of(weights.conv2[layer])
        if layer < len(kept.hidden):
            hidden = kept.hidden[layer]
        else:
            hidden = passes.relu_product(rows_of(source), conv1)
        if needs.conv2[layer]:
            found.conv2[layer] = weight_of(passes.product(rows.t(), hidden, dtype), 1)
        of_hidden = passes.masked_product(rows, conv2, hidden, backend)
        if layer or geometry.is_plain:
            if needs.conv1[layer]:
                of_weight = passes.product(of_hidden.t(), rows_of(source), dtype)
                found.conv1[layer] = weight_of(of_weight, 1)
            if layer or needs.x:
                if is_own:
                    passes.multiply_into(rows, of_hidden, conv1, add=True)
                else:
                    rows, is_own = passes.added_product(of_hidden, conv1, rows, backend), True
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
            if geometry.projects:
                columns, matrix = columns_of(x, geometry), matrix_of(weights.shortcut[0])
                if needs.shortcut[0]:
                    of_matrix = passes.product(rows.t(), columns, dtype)
                    found.shortcut[0] = weight_of(of_matrix, geometry.kernel)
                if needs.shortcut[1]:
                    found.shortcut[1] = rows.sum(0, dtype=dtype)
                if found.x[0] is not None:
                    into = columns_of(found.x[0], geometry)
                    passes.multiply_into(into, rows, matrix, add=True)
            elif found.x[0] is not None:
                passes.add_shortcut_gradient(found.x[0], rows, geometry, backend)
    return found
