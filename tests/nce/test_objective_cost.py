"""What the objective computes and holds: nothing for gradients that nobody wants."""

import pytest
import torch

from amdim_fast import last_plan, nce_objective
from amdim_fast.nce import algorithm, op_kernels
from tests.nce.cases import lower_floors
from tests.nce.dispatched import LargeTensors, Products
from tests.nce.objective_cases import WEIGHT, features, objective_of, ours

EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _small_work(monkeypatch):
    lower_floors(monkeypatch)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_inputs_cost_nothing(monkeypatch, needs, dtype):
    """Neither a product nor memory."""
    counted, made, room = Products(), [], []
    one_pass, new_flat = algorithm.one_pass, op_kernels.new_flat

    def within(*given, **options):
        room.append((options["grad_src"] is not None, options["grad_trg"] is not None))
        with counted:
            return one_pass(*given, **options)

    def recorded(*given):
        made.append(new_flat(*given))
        return made[-1]

    monkeypatch.setattr(algorithm, "one_pass", within)
    monkeypatch.setattr(op_kernels, "new_flat", recorded)
    lower_floors(monkeypatch, least=2**20)
    monkeypatch.setattr("amdim_fast.nce.products.PART_BYTES", 2**20)
    inputs = src, trg = features(6, 8, 64, dtype=dtype)
    for tensor, need in zip(inputs, needs, strict=True):
        tensor.requires_grad_(need)
    objective_of(src, trg).backward()
    assert counted.count == 1 + sum(needs)
    assert [tensor.grad is not None for tensor in inputs] == list(needs)
    wanted = [tensor.numel() for tensor, need in zip(inputs, needs, strict=True) if need]
    assert sum(wanted) <= made[0].numel() <= sum(wanted) + 128 * len(wanted)
    assert room == [needs]


def test_no_grad_makes_no_gradients(monkeypatch):
    new_flat, made = op_kernels.new_flat, []
    monkeypatch.setattr(op_kernels, "new_flat", lambda *a: made.append(new_flat(*a)) or made[-1])
    src, trg = features(5, 4, 6)
    expected = ours(src, trg)
    frozen = src.detach(), trg.detach()
    for given, enabled in (((src, trg), False), (frozen, True)):
        made.clear()
        with torch.set_grad_enabled(enabled):
            found = nce_objective(*given, mean_sq_weight=WEIGHT)
        assert made[0].numel() == 0
        assert (last_plan().pairings[0].mode, last_plan().pairings[0].gemms) == ("forward", 1)
        assert not found.objective.requires_grad
        torch.testing.assert_close(found.objective, expected.objective, **EXACT)
    with torch.inference_mode():
        found = nce_objective(*(tensor.clone() for tensor in frozen), mean_sq_weight=WEIGHT)
    torch.testing.assert_close(found.objective, expected.objective, **EXACT)


def test_saved_for_backward_are_the_inputs_alone():
    src, trg = features(5, 4, 6)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        objective_of(src, trg)
    assert sum(tensor.nbytes for tensor in saved) == src.nbytes + trg.nbytes


def test_the_graph_is_freed():
    """Without a garbage collection."""
    src, trg = features(6, 8, 64)
    with LargeTensors(6 * 8 * 64) as counted:
        objective_of(src, trg)
        assert counted.alive == 0
