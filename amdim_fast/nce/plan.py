"""How a call of the contrastive op spends its memory: block sizes, and which scores are kept."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# What the work buffers and the kept scores of a call may take together, on any device; inputs,
# gradients and whatever has a row a target, [n * L, D], come on top.
DEFAULT_MEMORY_BUDGET = 256 * 2**20
# Rows of products start at multiples of this many entries in the Triton kernels.
ROW_UNIT = 16
# A tile of 256 rows over kept scores stays within 32 bits.
LONGEST_ROW = 2**23 - ROW_UNIT


class WorkRule(NamedTuple):
    """What a backend holds of a block of scores.

    Attributes:
        work_itemsize: bytes a score takes in all work buffers that are alive at once.
        kept_itemsize: bytes a score takes from forward to backward.
        preferred_bytes: work buffers are no larger where the budget would let them,
        least_columns: unless a block then had fewer columns than this.
        row_unit: rows are padded to multiples of this many entries; blocks over kept scores start
            at such a multiple.
        longest_row: columns beyond which scores are not kept.
    """

    work_itemsize: int
    kept_itemsize: int
    preferred_bytes: int
    least_columns: int = 0
    row_unit: int = 1
    longest_row: int = 2**62

    def columns(self, count: int) -> int:
        """Entries a row of ``count`` columns takes."""
        return -(-count // self.row_unit) * self.row_unit

    def block_images(self, rows: int, images: int, locations: int, memory_budget: int) -> int:
        """Target images of a block, at least one."""
        column_bytes = rows * self.work_itemsize
        limit = min(memory_budget, max(self.preferred_bytes, self.least_columns * column_bytes))
        columns = limit // column_bytes // self.row_unit * self.row_unit
        fitting = max(1, min(images, columns // locations))
        whole = self.row_unit // math.gcd(self.row_unit, locations)
        return fitting if fitting == images or fitting < whole else fitting // whole * whole

    def may_keep(self, images: int, locations: int, block_images: int) -> bool:
        """Whether blocks of kept scores start where rows may, and rows are not too long."""
        whole = block_images >= images or block_images * locations % self.row_unit == 0
        return whole and images * locations <= self.longest_row


@dataclass(frozen=True)
class GroupPlan:
    """How one group (sources stacked against the same targets) is computed.

    Attributes:
        mode: "keep" (raw scores stay until the backward, which then costs two GEMMs more),
            "recompute" (nothing stays, three GEMMs more) or "forward" (no gradient asked for).
        block_images: target images a block of scores covers.
        block_bytes: bytes of the work buffers while a block is computed.
        kept_bytes: bytes of scores held from forward to backward.
    """

    mode: str
    block_images: int
    block_bytes: int
    kept_bytes: int

    @property
    def gemms(self) -> int:
        """Products of the size of the score matrix, forward and backward together."""
        return {"forward": 1, "keep": 3, "recompute": 4}[self.mode]


@dataclass(frozen=True)
class Plan:
    """What the last call of the contrastive op did.

    Attributes:
        backend: "torch" or "triton", the code that ran.
        products: the library of its matrix products, "onednn", "aten" (MKL, cuBLAS, ...) or, beside
            the Triton kernels, "cublas".
        groups: one entry a group, in the order of the call.
        memory_budget: the bytes the plan was made for.
        kernels: for "triton", how each group's kernels got their products, and why so.
    """

    backend: str
    products: str
    groups: tuple[GroupPlan, ...]
    memory_budget: int
    kernels: tuple[str, ...] = ()

    @property
    def kept_bytes(self) -> int:
        """Bytes of scores held from forward to backward."""
        return sum(group.kept_bytes for group in self.groups)

    @property
    def work_bytes(self) -> int:
        """Bytes of the work buffers while a block is computed."""
        return max(group.block_bytes for group in self.groups)


def plan_groups(
    shapes: Sequence[tuple[int, int, int]],
    rule: WorkRule,
    *,
    memory_budget: int,
    with_grad: bool,
) -> tuple[GroupPlan, ...]:
    """Split ``memory_budget`` bytes between work blocks and kept scores.

    Args:
        shapes: (rows S*B, target images N, locations L) of each group.
        rule: what the backend holds of a block.
        memory_budget: bytes; at 0 a block is one target image and nothing is kept.
        with_grad: whether a backward will follow.

    Returns:
        One GroupPlan a group. Work blocks come first, then scores are kept group by group, the
        earliest first, while they fit.
    """
    blocks = []
    for rows, images, locations in shapes:
        block_images = rule.block_images(rows, images, locations, memory_budget)
        row_bytes = rule.columns(block_images * locations) * rule.work_itemsize
        blocks.append((block_images, rows * row_bytes))
    remaining = memory_budget - max(block_bytes for _, block_bytes in blocks)
    groups = []
    for (rows, images, locations), (block_images, block_bytes) in zip(shapes, blocks, strict=True):
        total = rows * rule.columns(images * locations) * rule.kept_itemsize
        fits = total <= remaining and rule.may_keep(images, locations, block_images)
        keep = with_grad and fits
        mode = "keep" if keep else "recompute" if with_grad else "forward"
        remaining -= total if keep else 0
        groups.append(GroupPlan(mode, block_images, block_bytes, total if keep else 0))
    return tuple(groups)


def padded(columns: int) -> int:
    """Entries a row of products takes in the Triton kernels."""
    return -(-columns // ROW_UNIT) * ROW_UNIT


_state = threading.local()


def record_plan(plan: Plan) -> None:
    """Remember ``plan`` as this thread's latest."""
    _state.plan = plan


def last_plan() -> Plan | None:
    """The plan of this thread's latest contrastive forward; None before the first."""
    return getattr(_state, "plan", None)
