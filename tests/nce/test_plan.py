"""Plans: how they split a budget, for every kind of call."""

import itertools

import pytest
import torch

from amdim_fast.nce import parts, plan
from amdim_fast.nce.plan import DEFAULT_MEMORY_BUDGET, default_budget, plan_pairings
from amdim_fast.nce.way import ROW_UNIT, PairingShape, Way, padded
from tests.nce.cases import lower_floors


def ways():
    """Every kind of call."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for backend, fused, gpu, dtype in itertools.product(
        ("torch", "triton"), (False, True), (False, True), dtypes
    ):
        fits = backend == "triton" or not fused
        if fits and (backend, dtype) != ("triton", torch.float64):
            yield Way(backend, fused, gpu, dtype)
    for backend in ("torch", "triton"):
        yield Way(backend, False, True, torch.float32, limbs=True)


def row_bytes(shape, way):
    """Score-shaped memory of a row in one pass."""
    entries = padded(shape.columns) if way.backend == "triton" else shape.columns
    copies = 2 * shape.columns * (way.backend == "torch" and way.gpu and way.dtype.itemsize == 2)
    return entries * (8 if way.dtype == torch.float64 else 4) + copies


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("way", list(ways()), ids=str)
def test_plans_stay_within_the_budget(monkeypatch, way, one_pass):
    """Or take the least that they can; blocks and chunks are whole and equal."""
    lower_floors(monkeypatch)
    monkeypatch.setattr(parts, "GPU_PIECE_BYTES", 512)
    sizes = itertools.product((1, 3), (1, 7, 16, 33, 200), (1, 4, 16, 25, 49), (8,))
    shapes = [PairingShape(s, b, b, n, d) for s, b, n, d in sizes]
    shapes += [shape._replace(images=4 * shape.images) for shape in shapes[::5]]
    kinds = set()
    for budget in (0, 1_000, 30_000, 10**6, 10**7):
        for pair in zip(shapes, reversed(shapes), strict=True):
            options = {"one_pass": one_pass, "with_grad": True}
            plans = plan_pairings(pair, way, memory_budget=budget, **options)
            least = plan_pairings(pair, way, memory_budget=0, **options)
            work = max(found.block_bytes + found.sum_bytes for found in plans)
            floor = max(found.block_bytes + found.sum_bytes for found in least)
            assert work + sum(found.kept_bytes for found in plans) <= max(budget, floor)
            for found, shape in zip(plans, pair, strict=True):
                check_plan(found, shape, way)
                kinds.add((found.mode, found.chunk_rows < shape.rows))
            if budget == 0:
                assert all(found.kept_bytes == 0 for found in plans)
    expected = {("one_pass", True), ("one_pass", False)} if one_pass else {("keep", False)}
    assert kinds >= expected
    assert one_pass or ("recompute", True) in kinds


def check_plan(found, shape, way):
    """Chunks and blocks of a pairing, and pieces beside them."""
    assert 1 <= found.block_images <= shape.targets
    assert 0 <= found.chunk_rows <= shape.rows
    if found.mode == "one_pass":
        chunks = -(-shape.rows // found.chunk_rows)
        assert found.block_images == shape.targets
        assert found.chunk_rows == -(-shape.rows // chunks)
        several = chunks > 1 and way.dtype == torch.bfloat16
        assert found.sum_bytes == several * shape.columns * shape.width * 4
        pieces = found.block_bytes - found.chunk_rows * row_bytes(shape, way)
    else:
        assert found.sum_bytes == 0
        starts = range(0, shape.targets, found.block_images)
        unit = ROW_UNIT if way.backend == "triton" else 1
        assert all(start * shape.locations % unit == 0 for start in starts)
        assert (found.chunk_rows == 0) == (way.fused and found.mode == "recompute")
        pieces = 0
    if found.mode == "keep":
        entries = shape.rows * shape.columns
        if way.backend == "triton":
            entries = shape.rows * padded(shape.columns)
        assert found.kept_bytes == entries * (8 if way.dtype == torch.float64 else 4)
        assert found.chunk_rows == shape.rows
    else:
        assert found.kept_bytes == 0
    image = found.chunk_rows * shape.locations * (8 if way.dtype == torch.float64 else 4)
    if not way.limbs and way.dtype != torch.float16:
        assert pieces <= (0 if way.backend == "triton" else 2 * max(image, 512))


def test_the_type_of_gradients_of_products():
    """Half types are multiplied as they are on a GPU and in the kernels, else as float32."""
    half, wide = torch.bfloat16, torch.float64
    for backend, gpu, dtype, expected in (
        ("torch", False, half, (4, 4, False)),
        ("torch", True, half, (4, 2, True)),
        ("triton", False, half, (4, 2, False)),
        ("triton", True, half, (4, 2, False)),
        ("torch", True, torch.float32, (4, 4, False)),
        ("torch", False, wide, (8, 8, False)),
    ):
        way = Way(backend, False, gpu, dtype)
        assert (way.score_itemsize, way.grad_itemsize, way.copies_gradients) == expected


def amdim(images, width=2048):
    """Pairings of the loss."""
    return 2 * [
        PairingShape(2, images, images, 25, width),
        PairingShape(1, images, images, 49, width),
    ]


@pytest.mark.parametrize("images", [1024, 4096, 16384, 65536])
@pytest.mark.parametrize("one_pass", [False, True])
def test_large_batches_on_a_large_gpu(images, one_pass):
    """AMDIM at D = 2048 in bfloat16 and the default budget: the smallest blocks are still fast."""
    shapes, way = amdim(images), Way("triton", True, True, torch.bfloat16)
    budget = default_budget(shapes, way)
    bytes_of_features = 2 * 2048 * sum(shape.rows + shape.columns for shape in shapes)
    assert budget == max(DEFAULT_MEMORY_BUDGET, bytes_of_features)
    plans = plan_pairings(shapes, way, memory_budget=budget, one_pass=one_pass, with_grad=True)
    for found, shape in zip(plans, shapes, strict=True):
        columns = found.block_images * shape.locations
        assert columns >= min(4096 - ROW_UNIT * shape.locations, shape.columns)
        if one_pass:
            assert found.mode == "one_pass"
            assert found.chunk_rows >= min(shape.rows, 1000)
        else:
            block = 2 * shape.rows * padded(columns)
            assert found.block_bytes == block
            assert block <= max(DEFAULT_MEMORY_BUDGET, 2 * shape.rows * 4096)
    work = max(found.block_bytes + found.sum_bytes for found in plans)
    assert work + sum(found.kept_bytes for found in plans) <= budget
    # Features, their gradients, float32 gradients of stacked sources, and the work.
    assert 2 * bytes_of_features + 2 * 2 * images * 2048 * 4 + budget < 141 * 10**9


def test_the_default_budget_is_used():
    """Scores of all sizes are computed once where the gradients of targets need no sums.

    Chunks are as large as the budget allows, on a CPU as large as gains anything.
    """
    for images, backend, gpu in itertools.product(
        (100, 256, 500, 1000, 1024, 2048, 3000, 4096, 8192, 16384), ("torch", "triton"), (0, 1)
    ):
        for shape in amdim(images)[:2]:
            way = Way(backend, False, bool(gpu), torch.float32)
            (found,) = plan_pairings(
                [shape],
                way,
                memory_budget=default_budget([shape], way),
                one_pass=True,
                with_grad=True,
            )
            assert found.mode == "one_pass"
            chunks = -(-shape.rows // found.chunk_rows)
            largest = DEFAULT_MEMORY_BUDGET if gpu else plan.CPU_CHUNK_BYTES
            needed = shape.rows * row_bytes(shape, way) / largest
            assert chunks <= 1 + 2 * needed


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("with_grad", [False, True])
def test_a_budget_below_the_smallest_blocks_is_named(one_pass, with_grad):
    shape, way = PairingShape(1, 512, 512, 49, 64), Way("torch", False, False, torch.float32)
    options = {"one_pass": one_pass, "with_grad": with_grad}
    (above,) = plan_pairings([shape], way, memory_budget=1_000, **options)
    (within,) = plan_pairings([shape], way, memory_budget=DEFAULT_MEMORY_BUDGET, **options)
    assert above.why == "the budget is below the smallest blocks that are still fast"
    assert above.block_bytes > 1_000
    assert within.why != above.why
