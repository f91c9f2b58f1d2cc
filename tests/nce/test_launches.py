"""How much one call of the loss costs beside its arithmetic: launches and Python calls.

Kernels are counted, not run, on CPU tensors. On a GPU bfloat16 takes the same operations: each of
its products is one, too.
"""

from functools import partial

import pytest
import torch
from amdim_fast.kernels import launch
from torch._subclasses import FakeTensorMode

from amdim_fast import LossMultiNCE, last_plan
from amdim_fast.nce import algorithm, products, tiles, triton_passes
from tests.nce.cases import tile_set
from tests.nce.launches import Launches, python_calls, sums_to_float32

MOST = {"objective": 24, "general": 32, "no_grad": 12}
MOST_PYTHON_CALLS = 700


def maps(images=8, width=16):
    shapes = [(images, width, side, side) for side in (1, 5, 7)] * 2
    return [
        torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
        for shape in shapes
    ]


def objective(loss, inputs):
    return torch.autograd.grad(loss.objective(*inputs).objective, inputs)


def general(loss, inputs):
    return torch.autograd.grad(sum(loss(*inputs)), inputs)


def no_grad(loss, inputs):
    with torch.no_grad():
        return loss(*inputs)


WAYS = {"objective": objective, "general": general, "no_grad": no_grad}
MODES = {"objective": "one_pass", "general": "keep", "no_grad": "forward"}


@pytest.fixture
def loss(monkeypatch):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set("fused"))
    return LossMultiNCE(tclip=20.0, backend="triton")


def counted(monkeypatch, way, loss):
    inputs = maps()
    with Launches(monkeypatch) as launches:
        WAYS[way](loss, inputs)
    assert {pairing.mode for pairing in last_plan().pairings} == {MODES[way]}
    return launches


@pytest.mark.parametrize("way", WAYS)
def test_launches(monkeypatch, loss, way):
    launches = counted(monkeypatch, way, loss)
    assert launches.total <= MOST[way], launches.counts
    products_of = {"objective": 12, "general": 12, "no_grad": 0}
    assert launches.counts["aten::mm"] + launches.counts["aten::addmm"] == products_of[way]


@pytest.mark.parametrize("way", ["objective", "general"])
def test_the_plan_says_how_many_launches(monkeypatch, loss, way):
    launches = counted(monkeypatch, way, loss)
    own = {"objective": 2, "general": 7}  # locations, root gradient; and four sums, a stack
    assert last_plan().launches == launches.total - own[way]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("planted", ["contiguous", "cat"])
def test_an_extra_copy_is_counted(monkeypatch, loss, way, planted):
    matrix, found = algorithm.matrix, triton_passes.sum_rows
    if way == "no_grad":
        extra = {
            "contiguous": lambda *given: (given[0].neg + 0, found(*given))[1],
            "cat": lambda *given: (torch.cat([given[0].neg] * 2), found(*given))[1],
        }
        monkeypatch.setattr(triton_passes, "sum_rows", extra[planted])
    else:
        extra = {
            "contiguous": lambda trg: matrix(trg).t().contiguous().t(),
            "cat": lambda trg: torch.cat([matrix(trg)[:1], matrix(trg)[1:]]),
        }
        monkeypatch.setattr(algorithm, "matrix", extra[planted])
    assert counted(monkeypatch, way, loss).total > MOST[way]


@pytest.mark.parametrize("way", WAYS)
def test_python_calls_of_a_known_signature(monkeypatch, loss, way):
    monkeypatch.setattr(launch, "launch", lambda *arguments, **constants: None)
    inputs = maps()
    call = partial(WAYS[way], loss, inputs)
    call()
    calls = python_calls(call)
    assert calls <= MOST_PYTHON_CALLS
    assert python_calls(call) == calls


def test_python_calls_are_counted():
    def three():
        for _ in range(2):
            (lambda: None)()

    assert python_calls(three) == 3


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
def test_a_product_of_half_types_on_a_gpu_is_one_operation(monkeypatch, add, out_dtype):
    monkeypatch.setattr(products, "_adds_in_float32", lambda device: True)
    with FakeTensorMode(), sums_to_float32(), Launches(monkeypatch) as launches:
        a = torch.empty(8, 16, device="cuda", dtype=torch.bfloat16)
        b = torch.empty(16, 24, device="cuda", dtype=torch.bfloat16)
        out = torch.empty(8, 24, device="cuda", dtype=out_dtype)
        products.multiply_into(out, a, b, add=add)
    assert launches.total == 1
