"""FlopCounterMode counts the products that the ops make."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from amdim_fast import LossMultiNCE, last_plan, nce_loss, nce_objective
from tests.forked import TORCH
from tests.nce.cases import lower_floors
from tests.processes import run

ONE = 2 * 2 * 7 * 7 * 9 * 16  # 2 S B N L D


def loss(src, trg, budget):
    return sum(part.sum() for part in nce_loss(src, trg, memory_budget=budget))


def objective(src, trg, budget):
    return nce_objective(src, trg, mean_sq_weight=0.1, memory_budget=budget).objective


@pytest.mark.parametrize(
    ("function", "budget", "mode", "again"),
    [
        (loss, None, "keep", 0),
        (loss, 0, "recompute", 1),
        (objective, None, "one_pass", 0),
        (objective, 0, "one_pass", 0),
    ],
)
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True), (False, False)])
def test_products_that_are_made(monkeypatch, function, budget, mode, again, needs):
    lower_floors(monkeypatch)
    src, trg = torch.randn(2, 7, 16), torch.randn(7, 9, 16)
    for tensor, need in zip((src, trg), needs, strict=True):
        tensor.requires_grad_(need)
    with FlopCounterMode(display=False) as counter:
        value = function(src, trg, budget)
        if any(needs):
            value.backward()
    assert last_plan().pairings[0].mode == (mode if any(needs) else "forward")
    expected = 1 + sum(needs) + (again if any(needs) else 0)
    assert counter.get_total_flops() == expected * ONE
    assert not any(needs) or expected == last_plan().pairings[0].gemms - (2 - sum(needs))


@pytest.mark.parametrize("alone", [False, True])
def test_the_six_costs(alone):
    """On each 5x5 map two source sets, on each 7x7 map one; with gradients three times."""
    maps = [torch.randn(6, 16, side, side).requires_grad_() for side in (1, 5, 7) * 2]
    module = LossMultiNCE()
    with FlopCounterMode(display=False) as counter:
        (module.objective(*maps).objective if alone else sum(module(*maps))).backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 6 * 6 * 16) * (2 * 25 + 49)


def test_a_counter_that_is_imported_later_knows_them_too():
    code = """
import sys, torch, amdim_fast
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    amdim_fast.nce_loss(torch.randn(4, 8), torch.randn(4, 3, 8))
print(counter.get_total_flops())
"""
    done = run(["-c", code], ".", imported=TORCH)
    assert done.stdout.split() == [str(2 * 4 * 4 * 3 * 8)], done.stderr
