"""Large memory on a CPU: scores take the same one after another, and what is new may be huge."""

import itertools
import mmap

import pytest
import torch

from amdim_fast import LossMultiNCE, last_plan
from amdim_fast.nce import cpu_memory, op_kernels, plan, torch_passes
from amdim_fast.nce.cpu_memory import Scratch, in_huge_pages
from tests.nce.cases import lower_floors
from tests.nce.dispatched import LargeTensors

SIDES = (1, 5, 7)


def maps(images=48, dtype=torch.float32):
    """Features that are taken as they lie."""
    sizes = [(images, side, side, 8) for side in SIDES * 2]
    return [torch.randn(size, dtype=dtype).permute(0, 3, 1, 2).requires_grad_() for size in sizes]


@pytest.fixture
def rooms(monkeypatch):
    """(what they are for, first byte, size) of all memory for scores and their gradients."""
    found, room = [], torch_passes._room

    def recorded(pairing, shape, dtype, *, kept):
        made = room(pairing, shape, dtype, kept=kept)
        found.append((kept, made.data_ptr(), made.nbytes))
        return made.fill_(torch.nan)

    monkeypatch.setattr(torch_passes, "_room", recorded)
    return found


@pytest.fixture
def advised(monkeypatch):
    """(address, length, advice) of each call of madvise; all memory counts as large."""
    found = []
    monkeypatch.setattr(cpu_memory, "LARGE_BYTES", 2 * mmap.PAGESIZE)
    monkeypatch.setattr(cpu_memory, "_madvise", lambda: lambda *call: found.append(call) or -1)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 14, raising=False)
    return found


def test_scratch_is_taken_again():
    scratch = Scratch()
    first = scratch.take((5, 8), torch.float32)
    again = scratch.take((3, 2, 4), torch.float32)
    assert (first.shape, again.shape) == ((5, 8), (3, 2, 4))
    assert again.data_ptr() == first.data_ptr()
    assert again.is_contiguous()
    assert scratch.take((41,), torch.float32).numel() == 41
    assert scratch.take((3,), torch.float64).dtype == torch.float64
    assert scratch.take((0, 4), torch.float64).shape == (0, 4)


def test_scratch_never_holds_two():
    scratch = Scratch()
    with LargeTensors(100) as counted:
        for size in (200, 300, 250, 400):
            scratch.take((size,), torch.float32)
    assert counted.peak == 1600


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scores_of_all_pairings_take_the_same_memory(monkeypatch, rooms, dtype):
    lower_floors(monkeypatch)
    loss, inputs = LossMultiNCE(backend="torch", memory_budget=2**18), maps(dtype=dtype)
    loss.objective(*inputs).objective.backward()
    assert {pairing.mode for pairing in last_plan().pairings} == {"one_pass"}
    assert len(rooms) > len(last_plan().pairings)
    sizes = [size for _, _, size in rooms]
    growths = sum(size > max([0, *sizes[:i]]) for i, size in enumerate(sizes))
    assert len({address for _, address, _ in rooms}) <= growths < len(rooms) / 2


def test_blocks_of_kept_scores_take_the_same_memory(monkeypatch, rooms):
    """Kept scores have memory of their own, which the gradients' does not touch."""
    monkeypatch.setattr(plan, "PREFERRED_BLOCK_BYTES", 2**18)
    lower_floors(monkeypatch)
    inputs = maps()
    values = LossMultiNCE(backend="torch", memory_budget=2**25)(*inputs)
    assert {pairing.mode for pairing in last_plan().pairings} == {"keep"}
    kept = [(first, first + size) for is_kept, first, size in rooms if is_kept]
    assert len(kept) == len(last_plan().pairings) == len(rooms)
    sum(values).backward()
    blocks = [(first, first + size) for is_kept, first, size in rooms if not is_kept]
    assert len(blocks) > len(kept)
    assert len({first for first, _ in blocks}) == 1
    everything = sorted([*kept, max(blocks)])
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(everything))


def test_the_whole_call_takes_what_the_plan_says(monkeypatch):
    """Pairings of different sizes, with the memory of the largest held throughout."""
    lower_floors(monkeypatch)
    inputs = maps()
    counted = LargeTensors(10**4, inputs)
    function = op_kernels.objective_with_gradients

    def counting(*given):
        with counted:
            return function(*given)

    monkeypatch.setattr(op_kernels, "objective_with_gradients", counting)
    LossMultiNCE(backend="torch", memory_budget=2**20).objective(*inputs)
    found = last_plan()
    gradients = sum(tensor.nbytes for tensor in inputs)
    assert 0.9 * found.work_bytes <= counted.peak - gradients <= found.work_bytes


def test_large_memory_is_advised_whole_and_alone(advised):
    tensor = torch.empty(5 * mmap.PAGESIZE, dtype=torch.uint8)
    assert in_huge_pages(tensor) is tensor
    ((address, length, advice),) = advised
    assert advice == 14
    assert address % mmap.PAGESIZE == length % mmap.PAGESIZE == 0
    assert tensor.data_ptr() <= address < tensor.data_ptr() + mmap.PAGESIZE
    end = tensor.data_ptr() + tensor.nbytes
    assert end - mmap.PAGESIZE < address + length <= end


def test_small_memory_and_other_devices_are_not_advised(advised):
    in_huge_pages(torch.empty(2 * mmap.PAGESIZE - 1, dtype=torch.uint8))
    in_huge_pages(torch.empty(2**40, device="meta"))
    in_huge_pages(torch.empty(0))
    assert advised == []


def test_the_system_takes_the_advice_or_does_without(monkeypatch):
    tensor = in_huge_pages(torch.empty(cpu_memory.LARGE_BYTES // 4))
    assert tensor.fill_(3.0).sum() == 3.0 * tensor.numel()
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert cpu_memory._madvise.__wrapped__() is None
    monkeypatch.setattr(cpu_memory, "_madvise", lambda: None)
    assert in_huge_pages(tensor) is tensor


@pytest.mark.parametrize("budget", [2**25, 2**19])
@pytest.mark.parametrize("objective", [True, False])
def test_what_a_call_writes_at_large_is_advised(monkeypatch, advised, objective, budget):
    """Scores and the gradients that it returns; whether scores are kept or not."""
    lower_floors(monkeypatch)
    inputs = maps()
    loss = LossMultiNCE(backend="torch", memory_budget=budget)
    value = loss.objective(*inputs).objective if objective else sum(loss(*inputs))
    grads = torch.autograd.grad(value, inputs)
    ranges = [(address, address + length) for address, length, _ in advised]
    for grad in grads:
        if grad.nbytes >= 4 * mmap.PAGESIZE:
            middle = grad.data_ptr() + grad.nbytes // 2
            assert any(first <= middle < last for first, last in ranges)
    scores = max(pairing.block_bytes + pairing.kept_bytes for pairing in last_plan().pairings)
    assert max(last - first for first, last in ranges) >= scores // 4
