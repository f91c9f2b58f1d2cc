"""Sizes of a call that follow from its shapes alone; in graphs of any batch size, symbolic ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from amdim_fast.nce.way import PairingShape
from amdim_fast.nce.wiring import Wiring


class Sizes(NamedTuple):
    """Sizes of a call.

    Attributes:
        shapes: of each pairing.
        owns: entries of each pairing's own scores, R L.
        sums: entries of each pairing's log-sums, R M.
        sets: source sets of all pairings.
        rows: sources of all pairings.
    """

    shapes: tuple[PairingShape, ...]
    owns: tuple[int, ...]
    sums: tuple[int, ...]
    sets: int
    rows: int


def sizes_of(
    srcs: Sequence[Tensor],
    trgs: Sequence[Tensor],
    wiring: Wiring,
    *,
    same_location: bool,
    world_size: int,
) -> Sizes:
    """The sizes of a call; arguments as in ``layout_of``."""
    src_shapes = [tensor.shape for tensor in srcs]
    shapes = tuple(
        [
            PairingShape(
                src_shapes[place][0] + int(wiring.draws(index)),
                src_shapes[place][1] * world_size,
                *trgs[index].shape,
            )
            for index, place in enumerate(wiring.src_of)
        ]
    )
    return Sizes(
        shapes,
        tuple([shape.rows * shape.locations for shape in shapes]),
        tuple([shape.rows * (shape.locations if same_location else 1) for shape in shapes]),
        sum([shape.sets for shape in shapes]),
        sum([shape.rows for shape in shapes]),
    )
