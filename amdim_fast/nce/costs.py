"""What a call costs beside its score-shaped memory: launches on the device, and small tensors."""

from __future__ import annotations

from collections.abc import Sequence

from amdim_fast.nce.parts import limbs_bytes
from amdim_fast.nce.plan import FORWARD, KEEP, ONE_PASS, PairingPlan
from amdim_fast.nce.way import PairingShape, Way
from amdim_fast.nce.wiring import Wiring


def launches_of(
    plans: Sequence[PairingPlan],
    shapes: Sequence[PairingShape],
    wiring: Wiring,
    *,
    scaled: bool,
) -> int:
    """Kernels, products, copies and fills of the Triton backend, forward and backward together.

    ``scaled`` says whether the backward scales gradients that are there already.

    For features that are read in place, without a process group, and not for float16, whose scaled
    gradients take a few more.
    """
    count = 1  # sums of rows
    for index, (plan, shape) in enumerate(zip(plans, shapes, strict=True)):
        products = wiring.needs_src(index) + wiring.needs_trg(index)
        chunks = -(-shape.rows // plan.chunk_rows) if plan.chunk_rows else 1
        count += wiring.draws(index)
        if plan.mode == ONE_PASS:
            count += chunks * (2 + products) + (plan.sum_bytes > 0)
            continue
        count += 2 * chunks
        if plan.mode == FORWARD:
            continue
        blocks = -(-shape.targets // plan.block_images)
        fused = plan.chunk_rows == 0
        passes = 1 if fused or plan.mode == KEEP else 2
        count += fused + blocks * (passes + products)
    joins = sum(wiring.joins(index) is not None for index in wiring.pairings)
    return count + len(wiring.finishes()) + joins + scaled


def small_bytes_of(shapes: Sequence[PairingShape], way: Way, wiring: Wiring) -> int:
    """Bytes of stacked sources, of their gradients, which wait for the end, and of limbs of trg."""
    converted = way.backend == "torch" and not way.gpu and way.dtype.itemsize < way.score_itemsize
    itemsize = way.score_itemsize if converted else way.dtype.itemsize
    count, stacked = 0, set()
    for index, shape in enumerate(shapes):
        place = wiring.src_of[index]
        makes = wiring.draws(index) or (converted and place not in stacked)
        stacked.add(place)
        has_gradient = wiring.needs_src(index) and wiring.shares(index) is None
        count += shape.rows * shape.width * (itemsize * makes + way.score_itemsize * has_gradient)
    if way.limbs:
        count += max(limbs_bytes(shape.columns, shape.width) for shape in shapes)
    return count


def waiting_bytes_of(plans: Sequence[PairingPlan], shapes: Sequence[PairingShape], way: Way) -> int:
    """Bytes beside the plans' worst moment: memory of scores waits for the largest pairing's."""
    if way.backend != "torch" or way.gpu:
        return 0
    stored, beside = [], []
    for plan, shape in zip(plans, shapes, strict=True):
        rows = 0 if plan.mode == KEEP else plan.chunk_rows
        images = 0 if plan.mode in (ONE_PASS, FORWARD) else plan.block_images
        entries = max(rows * shape.columns, shape.rows * images * shape.locations)
        stored.append(entries * way.score_itemsize)
        beside.append(plan.block_bytes + plan.sum_bytes - stored[-1])
    worst = max(a + b for a, b in zip(stored, beside, strict=True))
    return max(stored) + max(beside) - worst
