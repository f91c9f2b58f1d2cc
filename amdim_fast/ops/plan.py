"""How a call of the contrastive op spends its memory: block sizes, and which scores are kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_MEMORY_BUDGET = 256 * 2**20
WORK_BLOCKS = 3
# Rows of products start at multiples of this many entries in the Triton kernels.
ROW_UNIT = 16
# Work blocks of this size stay in the caches of a CPU; on a GPU fewer, larger launches win.
PREFERRED_BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 64 * 2**20}


@dataclass(frozen=True)
class GroupPlan:
    """How one group (sources stacked against the same targets) is computed.

    Attributes:
        mode: "keep" (raw scores stay until the backward, which then costs two GEMMs more),
            "recompute" (nothing stays, three GEMMs more) or "forward" (no gradient asked for).
        block_images: target images a block of scores covers.
        block_bytes: bytes of one block of scores.
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
    """

    backend: str
    products: str
    groups: tuple[GroupPlan, ...]
    memory_budget: int

    @property
    def kept_bytes(self) -> int:
        """Bytes of scores held from forward to backward."""
        return sum(group.kept_bytes for group in self.groups)

    @property
    def work_bytes(self) -> int:
        """Bytes of the work buffers while a block is computed."""
        return WORK_BLOCKS * max(group.block_bytes for group in self.groups)


def plan_groups(
    shapes: Sequence[tuple[int, int, int]],
    *,
    itemsize: int,
    device_type: str,
    memory_budget: int,
    with_grad: bool,
) -> tuple[GroupPlan, ...]:
    """Split ``memory_budget`` bytes between work blocks and kept scores.

    Args:
        shapes: (rows S*B, target images N, locations L) of each group.
        itemsize: bytes of one score.
        device_type: "cpu" or "cuda"; sets the preferred block size.
        memory_budget: bytes; at 0 a block is one target image and nothing is kept.
        with_grad: whether a backward will follow.

    Returns:
        One GroupPlan a group. Work blocks come first, then scores are kept group by group, the
        earliest first, while they fit.
    """
    preferred = PREFERRED_BLOCK_BYTES.get(device_type, PREFERRED_BLOCK_BYTES["cuda"])
    limit = min(preferred, memory_budget // WORK_BLOCKS)
    blocks = []
    for rows, images, locations in shapes:
        image_bytes = rows * locations * itemsize
        block_images = max(1, min(images, limit // image_bytes))
        blocks.append((block_images, block_images * image_bytes))
    remaining = memory_budget - WORK_BLOCKS * max(block_bytes for _, block_bytes in blocks)
    groups = []
    for (rows, images, locations), (block_images, block_bytes) in zip(shapes, blocks, strict=True):
        total = rows * images * locations * itemsize
        keep = with_grad and total <= remaining
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
