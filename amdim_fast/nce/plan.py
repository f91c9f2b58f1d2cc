"""How a call of the contrastive op uses its memory: block sizes, and which scores are kept."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Bytes for the work buffers and kept scores of a call, on any device. Inputs, gradients and copies
# of a block's targets, [n * L, D], are not counted.
DEFAULT_MEMORY_BUDGET = 256 * 2**20
# In the Triton kernels rows of products start at multiples of this many entries.
ROW_UNIT = 16
# With rows no longer than this, offsets in a tile of 256 rows of kept scores fit in 32 bits.
LONGEST_ROW = 2**23 - ROW_UNIT


class WorkRule(NamedTuple):
    """What a backend needs in memory for a block of scores.

    Attributes:
        work_itemsize: bytes per score in all work buffers alive at once.
        kept_itemsize: bytes per score kept from forward to backward.
        preferred_bytes: size that work buffers do not exceed even if the budget allows more,
        least_columns: unless blocks would then have fewer columns than this.
        row_unit: rows are padded to multiples of this many entries, and blocks of kept scores start
            at such a multiple.
        longest_row: scores of longer rows, in columns, are not kept.
    """

    work_itemsize: int
    kept_itemsize: int
    preferred_bytes: int
    least_columns: int = 0
    row_unit: int = 1
    longest_row: int = 2**62

    def columns(self, count: int) -> int:
        """Entries in memory of a row of ``count`` columns."""
        return -(-count // self.row_unit) * self.row_unit

    def block_images(self, rows: int, images: int, locations: int, memory_budget: int) -> int:
        """Target images in a block, at least one."""
        column_bytes = rows * self.work_itemsize
        limit = min(memory_budget, max(self.preferred_bytes, self.least_columns * column_bytes))
        columns = limit // column_bytes // self.row_unit * self.row_unit
        fitting = max(1, min(images, columns // locations))
        whole = self.row_unit // math.gcd(self.row_unit, locations)
        return fitting if fitting == images or fitting < whole else fitting // whole * whole

    def may_keep(self, images: int, locations: int, block_images: int) -> bool:
        """Whether every block of kept scores would be aligned, and rows are not too long."""
        whole = block_images >= images or block_images * locations % self.row_unit == 0
        return whole and images * locations <= self.longest_row


@dataclass(frozen=True)
class PairingPlan:
    """How one pairing, sources stacked against the same targets, is computed.

    Attributes:
        mode: "keep" (raw scores are kept for the backward, which takes two matrix products),
            "recompute" (they are computed again, three products) or "forward" (no backward).
        block_images: target images in a block of scores.
        block_bytes: bytes of the work buffers while a block is computed.
        kept_bytes: bytes of scores kept from forward to backward.
    """

    mode: str
    block_images: int
    block_bytes: int
    kept_bytes: int

    @property
    def gemms(self) -> int:
        """Matrix products of the size of the scores, in forward and backward together."""
        return {"forward": 1, "keep": 3, "recompute": 4}[self.mode]


@dataclass(frozen=True)
class Plan:
    """How a call of the contrastive op was computed.

    Attributes:
        backend: the code that ran, "torch" or "triton".
        products: the library of its matrix products: "onednn", "aten" (MKL, cuBLAS, ...) or, for
            those beside the Triton kernels, "cublas".
        pairings: one plan per pairing, in the order of the call.
        memory_budget: the bytes that the plan was made for.
        kernels: for "triton", how the kernels of each pairing got their products, and why.
    """

    backend: str
    products: str
    pairings: tuple[PairingPlan, ...]
    memory_budget: int
    kernels: tuple[str, ...] = ()

    @property
    def kept_bytes(self) -> int:
        """Bytes of scores kept from forward to backward."""
        return sum(pairing.kept_bytes for pairing in self.pairings)

    @property
    def work_bytes(self) -> int:
        """Bytes of the work buffers while a block is computed."""
        return max(pairing.block_bytes for pairing in self.pairings)


def plan_pairings(
    shapes: Sequence[tuple[int, int, int]],
    rule: WorkRule,
    *,
    memory_budget: int,
    with_grad: bool,
) -> tuple[PairingPlan, ...]:
    """Split ``memory_budget`` bytes between work blocks and kept scores.

    Args:
        shapes: (rows S * B, target images N, locations L) of each pairing.
        rule: what the backend needs for a block.
        memory_budget: bytes; at 0 a block is one target image and nothing is kept.
        with_grad: whether a backward will follow.

    Returns:
        One plan per pairing. Work blocks take their share first; then scores are kept, in the order
        of the pairings, wherever they fit in what remains.
    """
    blocks = []
    for rows, images, locations in shapes:
        block_images = rule.block_images(rows, images, locations, memory_budget)
        row_bytes = rule.columns(block_images * locations) * rule.work_itemsize
        blocks.append((block_images, rows * row_bytes))
    remaining = memory_budget - max(block_bytes for _, block_bytes in blocks)
    pairings = []
    for (rows, images, locations), (block_images, block_bytes) in zip(shapes, blocks, strict=True):
        total = rows * rule.columns(images * locations) * rule.kept_itemsize
        fits = total <= remaining and rule.may_keep(images, locations, block_images)
        keep = with_grad and fits
        mode = "keep" if keep else "recompute" if with_grad else "forward"
        remaining -= total if keep else 0
        pairings.append(PairingPlan(mode, block_images, block_bytes, total if keep else 0))
    return tuple(pairings)


def padded(columns: int) -> int:
    """Entries in memory of a row of products in the Triton kernels."""
    return -(-columns // ROW_UNIT) * ROW_UNIT


_state = threading.local()


def record_plan(plan: Plan) -> None:
    """Make ``plan`` this thread's latest."""
    _state.plan = plan


def last_plan() -> Plan | None:
    """The plan of the latest contrastive forward in this thread; None before the first."""
    return getattr(_state, "plan", None)
