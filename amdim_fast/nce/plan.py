"""How a call of the contrastive ops uses its memory: chunks, blocks, and which scores are kept.

Shapes, types, device and budget alone decide, so results do not depend on what memory is free.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from amdim_fast.nce.parts import bytes_beside, limbs_bytes
from amdim_fast.nce.way import ROW_UNIT, PairingShape, Way

# Budget on any device; on a GPU the bytes of the features if that is more.
DEFAULT_MEMORY_BUDGET = 256 * 2**20
# Chunks of rows and blocks of columns are at least this large, where there are as many: smaller
# ones are slow. On CPUs the least is a number of bytes.
LEAST_ROWS = 1024
LEAST_COLUMNS = 4096
LEAST_CPU_BYTES = 8 * 2**20
# On a CPU, where gradients of targets add up in their place, larger chunks gain nothing; in smaller
# ones threads wait for one another more often, longest where another process takes a core.
CPU_CHUNK_BYTES = 64 * 2**20
# Fewer chunks read and write sums of gradients less often.
GPU_CHUNK_BYTES = 2 * 2**30
# Blocks of gradients of this size or more gain nothing.
PREFERRED_BLOCK_BYTES = 128 * 2**20

ONE_PASS, KEEP, RECOMPUTE, FORWARD = "one_pass", "keep", "recompute", "forward"


@dataclass(frozen=True)
class PairingPlan:
    """How one pairing, sources stacked against the same targets, is computed.

    Attributes:
        mode: "one_pass" (gradients are made with the scores, three products in all), "keep" (raw
            scores are kept for the backward, three), "recompute" (they are computed again, four)
            or "forward" (no backward, one).
        chunk_rows: sources whose scores are in memory at once in the forward; 0 if none are.
        block_images: target images in a block of the backward; all in one pass.
        block_bytes: score-shaped memory beside what is kept, at its most.
        sum_bytes: float32 memory in which gradients of targets add up.
        kept_bytes: scores kept from forward to backward.
        why: what decided.
    """

    mode: str
    chunk_rows: int
    block_images: int
    block_bytes: int
    sum_bytes: int
    kept_bytes: int
    why: str

    @property
    def gemms(self) -> int:
        """Matrix products of the size of the scores, in forward and backward together."""
        return {FORWARD: 1, ONE_PASS: 3, KEEP: 3, RECOMPUTE: 4}[self.mode]


@dataclass(frozen=True)
class Plan:
    """How a call of a contrastive op was computed.

    Attributes:
        backend: the code that ran, "torch" or "triton".
        products: the library of its largest matrix products: "onednn", "aten" (MKL, cuBLAS, ...)
            or, for those beside the Triton kernels, "cublas"; and " in limbs" where float32 is
            split.
        pairings: one plan per pairing, in the order of the call.
        memory_budget: the bytes that the plan was made for.
        small_bytes: stacked sources, gradients of sources, sums of rows, and on a CPU what memory
            of scores takes while it waits for a larger pairing.
        launches: kernels, products, copies and fills on the device, forward and backward together;
            None where they are not counted: for "torch", float16 and process groups.
        kernels: of each pairing: for "triton", where its products come from, and for "torch", what
            computes from each score; and why.
    """

    backend: str
    products: str
    pairings: tuple[PairingPlan, ...]
    memory_budget: int
    small_bytes: int = 0
    launches: int | None = None
    kernels: tuple[str, ...] = ()

    @property
    def kept_bytes(self) -> int:
        """Bytes of scores kept from forward to backward."""
        return sum(pairing.kept_bytes for pairing in self.pairings)

    @property
    def work_bytes(self) -> int:
        """Bytes of blocks and sums while a pairing is computed."""
        return max(pairing.block_bytes + pairing.sum_bytes for pairing in self.pairings)

    @property
    def peak_bytes(self) -> int:
        """Bytes beside inputs, results and gradients, at the most."""
        return self.kept_bytes + self.work_bytes + self.small_bytes


def default_budget(shapes: Sequence[PairingShape], way: Way) -> int:
    """Bytes for score-shaped memory: 256 MiB; on a GPU those of the features, if more."""
    if not way.gpu:
        return DEFAULT_MEMORY_BUDGET
    entries = sum(shape.width * (shape.rows + shape.columns) for shape in shapes)
    budget: Any = torch.sym_max(DEFAULT_MEMORY_BUDGET, entries * way.dtype.itemsize)
    return budget


def plan_pairings(
    shapes: Sequence[PairingShape],
    way: Way,
    *,
    memory_budget: int,
    one_pass: bool,
    with_grad: bool,
    keep: int | None = None,
) -> tuple[PairingPlan, ...]:
    """Split ``memory_budget`` bytes between chunks, blocks, sums and kept scores.

    Args:
        shapes: of each pairing.
        way: backend, device and type.
        memory_budget: bytes; below the smallest blocks that are still fast, those are taken.
        one_pass: whether the call makes its own gradients.
        with_grad: whether gradients are wanted.
        keep: 1 to keep the scores of all pairings, 0 to keep none, None where they fit.

    Returns:
        One plan per pairing. Work comes first; then scores are kept, in the order of the pairings,
        wherever they fit in what remains.
    """
    if not with_grad:
        plans = [_forward_only(shape, way, memory_budget) for shape in shapes]
    elif one_pass:
        plans = [_one_pass(shape, way, memory_budget) for shape in shapes]
    else:
        plans = _general(shapes, way, memory_budget, keep)
    return tuple(_named_if_above(plan, memory_budget) for plan in plans)


def _general(
    shapes: Sequence[PairingShape], way: Way, memory_budget: int, all_kept: int | None
) -> list[PairingPlan]:
    plans = [_recompute(shape, way, memory_budget) for shape in shapes]
    work = max(plan.block_bytes for plan in plans)
    remaining = memory_budget
    for index, shape in enumerate(shapes):
        keep = _keep(shape, way, work)
        needed = max(work, keep.block_bytes)
        fits = keep.kept_bytes + needed <= remaining
        if fits if all_kept is None else all_kept:
            work, remaining = needed, remaining - keep.kept_bytes
            plans[index] = keep
    return plans


def _named_if_above(plan: PairingPlan, memory_budget: int) -> PairingPlan:
    """The plan; where it takes more than the budget, it says why."""
    if plan.block_bytes + plan.sum_bytes <= memory_budget:
        return plan
    return replace(plan, why="the budget is below the smallest blocks that are still fast")


def _chunk(
    shape: PairingShape, way: Way, limit: int, *, with_grad: bool = False
) -> tuple[int, int]:
    """Rows of a chunk, and its bytes; ``with_grad``: whether its gradients are multiplied."""
    row_bytes = way.row_entries(shape.columns) * way.score_itemsize
    row_bytes += way.copies_gradients * shape.columns * way.grad_itemsize
    least = LEAST_ROWS if way.gpu else max(1, LEAST_CPU_BYTES // row_bytes)

    def size(count: int) -> int:
        return -(-shape.rows // count)

    def taken(count: int) -> int:
        rows = size(count)
        return rows * row_bytes + bytes_beside(shape, way, rows, shape.targets, with_grad=with_grad)

    count = _fewest(-(-shape.rows // least), lambda count: taken(count) <= limit)
    return size(count), taken(count)


def _fewest(most: int, fits: Callable[[int], bool]) -> int:
    """The fewest equal parts, ``most`` of them if none fit."""
    return min(most, 1 + bisect.bisect_left(range(1, most + 1), True, key=fits))


def _forward_only(shape: PairingShape, way: Way, memory_budget: int) -> PairingPlan:
    if way.fused:
        why = "no gradients are wanted; the kernel stores no products"
        return PairingPlan(FORWARD, 0, shape.targets, 0, 0, 0, why)
    rows, chunk_bytes = _chunk(shape, way, min(memory_budget, DEFAULT_MEMORY_BUDGET))
    why = "no gradients are wanted"
    return PairingPlan(FORWARD, rows, shape.targets, chunk_bytes, 0, 0, why)


def _one_pass(shape: PairingShape, way: Way, memory_budget: int) -> PairingPlan:
    sums_apart, sum_bytes = way.dtype == torch.bfloat16, 0
    largest = DEFAULT_MEMORY_BUDGET if sums_apart else CPU_CHUNK_BYTES
    limit = min(memory_budget, GPU_CHUNK_BYTES if way.gpu else largest)
    rows, chunk_bytes = _chunk(shape, way, limit, with_grad=True)
    if rows < shape.rows and sums_apart:
        sum_bytes = shape.columns * shape.width * 4
        limit = min(limit, memory_budget - sum_bytes)
        rows, chunk_bytes = _chunk(shape, way, limit, with_grad=True)
    if chunk_bytes + sum_bytes > memory_budget:
        plan = _recompute(shape, way, memory_budget)
        if plan.block_bytes < chunk_bytes + sum_bytes:
            return plan
    why = "the budget holds all rows" if rows == shape.rows else "the budget holds some rows"
    return PairingPlan(ONE_PASS, rows, shape.targets, chunk_bytes, sum_bytes, 0, why)


def _block(shape: PairingShape, way: Way, limit: int, *, products: bool) -> tuple[int, int]:
    """Images of a block of the backward, and its bytes; ``products``: whether it stores them."""
    itemsize = way.score_itemsize if products else way.grad_itemsize
    if way.copies_gradients:
        itemsize += way.grad_itemsize if products else way.score_itemsize
    column_bytes = shape.rows * itemsize
    least = LEAST_COLUMNS if way.gpu else max(1, LEAST_CPU_BYTES // column_bytes)
    whole = ROW_UNIT // math.gcd(ROW_UNIT, shape.locations) if way.backend == "triton" else 1
    # In limbs, sources wait for all blocks.
    waiting = way.limbs * limbs_bytes(shape.rows, shape.width)

    def size(count: int) -> int:
        images = -(-shape.targets // count)
        if images < shape.targets:
            images = min(shape.targets, max(1, images // whole) * whole)
        return images

    def entry_bytes(count: int) -> int:
        return shape.rows * way.row_entries(size(count) * shape.locations) * itemsize

    def taken(count: int) -> int:
        return entry_bytes(count) + waiting + bytes_beside(shape, way, shape.rows, size(count))

    def fits(count: int) -> bool:
        return entry_bytes(count) <= PREFERRED_BLOCK_BYTES and taken(count) <= limit

    count = _fewest(-(-shape.targets // max(1, least // shape.locations)), fits)
    return size(count), taken(count)


def _recompute(shape: PairingShape, way: Way, memory_budget: int) -> PairingPlan:
    images, block_bytes = _block(shape, way, memory_budget, products=not way.fused)
    why = "the budget holds no more than blocks"
    if way.fused:
        return PairingPlan(RECOMPUTE, 0, images, block_bytes, 0, 0, why)
    rows, chunk_bytes = _chunk(shape, way, min(memory_budget, PREFERRED_BLOCK_BYTES))
    return PairingPlan(RECOMPUTE, rows, images, max(block_bytes, chunk_bytes), 0, 0, why)


def _keep(shape: PairingShape, way: Way, limit: int) -> PairingPlan:
    kept = shape.rows * way.row_entries(shape.columns) * way.score_itemsize
    images, block_bytes = _block(shape, way, limit, products=False)
    why = "the budget holds all scores"
    return PairingPlan(KEEP, shape.rows, images, block_bytes, 0, kept, why)


_state = threading.local()


def record_plan(plan: Plan) -> None:
    """Make ``plan`` this thread's latest."""
    _state.plan = plan


def last_plan() -> Plan | None:
    """The plan of the latest contrastive forward in this thread; None before the first."""
    return getattr(_state, "plan", None)
