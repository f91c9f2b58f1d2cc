"""Plans: what they promise, and that the backends hold no more than that."""

import itertools
import weakref

import pytest
import torch
from amdim_fast.kernels import nce_tile_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amdim_fast.nce import tile_file, tiles, torch_backend, triton_backend, triton_problem
from amdim_fast.nce.plan import (
    DEFAULT_MEMORY_BUDGET,
    ROW_UNIT,
    WorkRule,
    padded,
    plan_pairings,
)
from amdim_fast.nce.products import PART_BYTES
from tests.nce.cases import features, tile_set, upstream_like

GPU = torch.device("cuda")


class LargeTensors(TorchDispatchMode):
    """Most bytes that float tensors of ``least`` entries or more, made in here, took at once."""

    def __init__(self, least, given=()):
        super().__init__()
        self.least, self.alive, self.peak = least, 0, 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.is_floating_point()
                and not tensor.is_mkldnn
            ):
                self._count(tensor.untyped_storage(), tensor.dtype.itemsize)
        return result

    def _count(self, storage, itemsize):
        size, key = storage.nbytes(), storage.data_ptr()
        if size < self.least * itemsize or key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, size, key)

    def _forget(self, size, key):
        self._known.discard(key)
        self.alive -= size


def test_large_tensors_are_counted_while_they_live():
    with LargeTensors(100) as counted:
        a = torch.zeros(200)
        b = a.view(10, 20) + 1.0
        del a, b
        torch.zeros(150)
        torch.zeros(99)
    assert (counted.peak, counted.alive) == (1600, 0)


WAYS = ("fused", "descriptors", "elementwise", "torch")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("same_location", [False, True])
@pytest.mark.parametrize("block_images", [8, 16, 48])
@pytest.mark.parametrize("keep", [False, True])
def test_work_buffers_take_what_the_plan_says(monkeypatch, keep, block_images, same_location, way):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(way))
    monkeypatch.setattr(triton_problem, "PROGRAMS_PER_PROCESSOR", 1)
    module = torch_backend if way == "torch" else triton_backend
    sets, images, locations, width = 3, 48, 4, 8
    src, trg = (tensor.detach() for tensor in features(images, locations, width, sets=sets))
    upstream = upstream_like(src, trg)
    rows = sets * images
    rule = module.work_rule(src.dtype, src.device, width, same_location)
    scores = rows * block_images * locations
    work, kept = scores * rule.work_itemsize, rows * images * locations * rule.kept_itemsize
    (plan,) = plan_pairings(
        [(rows, images, locations)],
        rule._replace(preferred_bytes=work, least_columns=0),
        memory_budget=work + keep * kept,
        with_grad=True,
    )
    assert (plan.mode, plan.block_images) == ("keep" if keep else "recompute", block_images)
    assert (plan.block_bytes, plan.kept_bytes) == (work, keep * kept)
    pairing = torch_backend.Pairing(src, trg, 20.0, same_location, plan)
    with LargeTensors(scores) as forward:
        score, neg, _, found = module.forward(pairing)
    with LargeTensors(scores, found) as backward:
        module.backward(pairing, found, score, neg, *upstream, need_src=True, need_trg=True)
    assert sum(tensor.nbytes for tensor in found) == plan.kept_bytes
    assert forward.peak <= plan.block_bytes + plan.kept_bytes
    assert backward.peak <= plan.block_bytes
    if way != "torch" and not keep:
        products = scores * 4
        reads = way == "elementwise"
        assert forward.peak == (products if reads else 0)
        assert backward.peak == (2 if reads or same_location else 1) * products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_wide_targets_takes_no_second_tensor_of_its_size(dtype):
    images, locations, width = 16, 24, 4096
    src, trg = (tensor.detach().to(dtype) for tensor in features(images, locations, width, sets=1))
    upstream = upstream_like(src, trg)
    rule = torch_backend.work_rule(dtype, src.device, width, False)
    (plan,) = plan_pairings(
        [(images, images, locations)], rule, memory_budget=2**22, with_grad=True
    )
    pairing = torch_backend.Pairing(src, trg, 20.0, False, plan)
    score, neg, _, kept = torch_backend.forward(pairing)
    with LargeTensors(src.numel() + 1, (trg, *kept)) as backward:
        _, grad = torch_backend.backward(
            pairing, kept, score, neg, *upstream, need_src=True, need_trg=True
        )
    part = PART_BYTES["cpu"] if dtype == torch.float32 else 0
    assert plan.block_images == images
    assert part < grad.nbytes <= backward.peak <= grad.nbytes + part


def test_torch_counts_three_blocks_and_triton_what_its_kernels_hold():
    half, single = torch.bfloat16, torch.float32
    cpu = torch.device("cpu")
    assert torch_backend.work_rule(half, cpu, 64, False).work_itemsize == 12
    assert torch_backend.work_rule(torch.float64, cpu, 64, False).work_itemsize == 24
    for dtype, width, same_location, expected in (
        (half, 64, False, 2),  # the gradients in the type of the inputs
        (half, 64, True, 6),  # and the products, read by the backward
        (half, 63, False, 6),
        (single, 64, False, 8),  # IEEE products are cuBLAS's, by the tile table
    ):
        rule = triton_backend.work_rule(dtype, cpu, width, same_location)
        assert (rule.work_itemsize, rule.kept_itemsize) == (expected, 4)


RULES = (
    WorkRule(12, 4, preferred_bytes=3 * 2**13),
    WorkRule(2, 4, preferred_bytes=2**13, least_columns=64, row_unit=ROW_UNIT),
    WorkRule(6, 4, preferred_bytes=2**14, least_columns=8, row_unit=ROW_UNIT),
)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_plans_stay_within_the_budget(rule):
    sizes = itertools.product((1, 30, 64), (1, 7, 16, 33, 200), (1, 4, 16, 25, 49))
    shapes = list(sizes)
    for budget in (0, 1_000, 30_000, 10**6, 10**7):
        for pair in zip(shapes, reversed(shapes), strict=True):
            plans = plan_pairings(pair, rule, memory_budget=budget, with_grad=True)
            least = max(rows * rule.columns(n) for rows, _, n in pair) * rule.work_itemsize
            work = max(plan.block_bytes for plan in plans)
            kept = sum(plan.kept_bytes for plan in plans)
            assert work + kept <= max(budget, least)
            for plan, (rows, images, locations) in zip(plans, pair, strict=True):
                assert 1 <= plan.block_images <= images
                block = rows * rule.columns(plan.block_images * locations) * rule.work_itemsize
                assert plan.block_bytes == block
                if plan.mode == "keep":
                    assert plan.kept_bytes == 4 * rows * rule.columns(images * locations)
                    starts = range(0, images, plan.block_images)
                    assert all(start * locations % rule.row_unit == 0 for start in starts)
                assert budget > 0 or (plan.mode, plan.block_images) == ("recompute", 1)


def test_rows_past_32_bits_within_a_tile_are_not_kept():
    rule = triton_backend.work_rule(torch.float16, torch.device("cpu"), 8, False)
    for locations, mode in ((2**19 - 16, "keep"), (2**19, "recompute")):
        (plan,) = plan_pairings([(16, 16, locations)], rule, memory_budget=2**40, with_grad=True)
        assert plan.mode == mode
    largest = max(tile.rows for row in nce_tile_table.TABLE.values() for tile in row[1:])
    assert largest * padded(rule.longest_row) < 2**31
    assert tile_file.LIMITS["rows"][1] * padded(rule.longest_row) < 2**31


@pytest.mark.parametrize("images", [1024, 4096, 16384, 65536])
def test_blocks_of_large_batches_on_a_large_gpu(monkeypatch, images):
    """Sizes of the two pairings of a direction of AMDIM at D = 2048 in bfloat16, default budget."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    rule = triton_backend.work_rule(torch.bfloat16, GPU, 2048, False)
    shapes = [(2 * images, images, 25), (images, images, 49)]
    plans = plan_pairings(shapes, rule, memory_budget=DEFAULT_MEMORY_BUDGET, with_grad=True)
    for plan, (rows, _, locations) in zip(plans, shapes, strict=True):
        columns = plan.block_images * locations
        fitting = DEFAULT_MEMORY_BUDGET // (2 * rows)
        assert columns >= min(4096, fitting) - ROW_UNIT * locations
        assert 2 * rows * padded(columns) == plan.block_bytes <= DEFAULT_MEMORY_BUDGET
    features = 2 * (1 + 25 + 49) * images * 2048 * 2
    sources = 2 * 2 * images * 2048 * 4  # the gradient of stacked sources, and one block's part
    total = 2 * features + sources + DEFAULT_MEMORY_BUDGET
    assert total < 139 * 2**30
