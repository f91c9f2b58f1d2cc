"""Scores on a CPU take the same memory, one after another; those that are kept have their own."""

import itertools

import pytest
import torch

from amdim_fast import LossMultiNCE, last_plan
from amdim_fast.nce import op_kernels, plan, torch_passes
from amdim_fast.nce.scratch import Scratch
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


def test_scratch_is_taken_again():
    scratch = Scratch(torch.float64)
    first = scratch.take((5, 8))
    again = scratch.take((3, 2, 4))
    assert (first.shape, again.shape) == ((5, 8), (3, 2, 4))
    assert first.dtype == again.dtype == torch.float64
    assert again.data_ptr() == first.data_ptr()
    assert again.is_contiguous()
    assert scratch.take((41,)).numel() == 41
    assert scratch.take((0, 4)).shape == (0, 4)


def test_scratch_never_holds_two():
    scratch = Scratch(torch.float32)
    with LargeTensors(100) as counted:
        for size in (200, 300, 250, 400):
            scratch.take((size,))
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
