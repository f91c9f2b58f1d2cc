"""The branches for CUDA tensors, run on fake ones: types, shapes and operations, no results.

What the results are, only a GPU can tell: ``tests/nce/test_gpu.py``.
"""

import contextlib

import pytest
import torch
from amdim_fast.kernels import nce_layout
from torch._subclasses import FakeTensorMode

from amdim_fast.nce import (
    backend,
    layout,
    op_kernels,
    plan,
    products,
    triton_arguments,
    triton_fused,
)
from amdim_fast.nce.op_inputs import Inputs
from tests.nce.launches import Launches, sums_to_float32

IMAGES, WIDTH = 64, 32
NEEDS = [True] * 6


@pytest.fixture
def fake_gpu(monkeypatch):
    """Fake CUDA tensors of an H100, and a count of what they launch."""
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    monkeypatch.setattr(backend, "_obstacle", lambda device: None)
    for module in (triton_arguments, triton_fused):
        monkeypatch.setattr(module, "capability_of", lambda device: (9, 0))
    monkeypatch.setattr(triton_fused, "strips_of", lambda device, tile, rows, columns: (4, 1))
    monkeypatch.setattr(nce_layout, "loadable", lambda tensor: True)
    monkeypatch.setattr(nce_layout, "descriptors", lambda src, trg, tile: (src, trg))
    monkeypatch.setattr(products, "_adds_in_float32", lambda device: True)
    monkeypatch.setattr(layout, "_layouts", {})
    with FakeTensorMode(), sums_to_float32(), Launches(monkeypatch) as launches:
        yield launches


def inputs(dtype, backend_name, budget=None, clip=20.0):
    def new(*shape):
        return torch.empty(shape, dtype=dtype, device="cuda")

    srcs = [new(1, IMAGES, WIDTH), new(1, IMAGES, WIDTH)]
    trgs = [new(IMAGES, locations, WIDTH) for locations in (25, 49, 25, 49)]
    picks = [torch.empty(IMAGES, dtype=torch.int64, device="cuda") for _ in range(2)]
    wiring = [0, 0, 1, 1], [2, -1, 0, -1]
    return Inputs(
        srcs, trgs, picks, *wiring, clip, False, 3, 0.5, 0.025, backend_name, "auto", budget
    )


DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("backend_name", ["torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("chunks", [1, 2])
def test_objective(monkeypatch, fake_gpu, backend_name, dtype, budget, chunks):
    monkeypatch.setattr(plan, "LEAST_ROWS", 48)
    monkeypatch.setattr(plan, "LEAST_COLUMNS", 32 * 25)
    if chunks > 1:
        row_bytes = 4 * plan.padded(IMAGES * 49)
        monkeypatch.setattr(plan, "GPU_CHUNK_BYTES", 48 * row_bytes)
    given = inputs(dtype, backend_name, budget)
    objective, totals, loss, mean_sq, gradients = op_kernels.objective(*given, NEEDS)
    found = plan.last_plan()
    assert {part.mode for part in found.pairings} <= {"recompute", "one_pass"}
    if budget is None:
        assert (found.pairings[1].chunk_rows < IMAGES) == (chunks > 1)
    assert (objective.shape, totals.shape, loss.shape, mean_sq.shape) == ((), (4,), (6,), (6,))
    assert {t.dtype for t in (objective, totals, loss, mean_sq)} == {torch.float32}
    assert gradients.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    if backend_name == "triton" and dtype != torch.float16:
        assert fake_gpu.total == found.launches - 1  # the backward's scaling


@pytest.mark.parametrize("backend_name", ["torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("clip", [20.0, None])
def test_forward_and_backward(monkeypatch, fake_gpu, backend_name, dtype, budget, clip):
    monkeypatch.setattr(plan, "LEAST_ROWS", 48)
    monkeypatch.setattr(plan, "LEAST_COLUMNS", 32 * 25)
    given = inputs(dtype, backend_name, budget, clip)
    totals, loss, _, mean_sq, score, saved = op_kernels.forward(*given, None, NEEDS)
    found = plan.last_plan()
    assert {part.mode for part in found.pairings} == {"recompute" if budget == 0 else "keep"}
    grads = op_kernels.backward(*given, None, NEEDS, [score, *saved], totals, loss, None, mean_sq)
    assert [(g.shape, g.dtype) for g in grads] == [
        (t.shape, t.dtype) for t in (*given.srcs, *given.trgs)
    ]
    if backend_name == "triton" and dtype != torch.float16:
        assert fake_gpu.total == found.launches


def test_launches_of_bfloat16(fake_gpu):
    op_kernels.objective(*inputs(torch.bfloat16, "triton"), NEEDS)
    assert fake_gpu.total <= 24 - 3, fake_gpu.counts  # locations, root gradient, scaling
    assert fake_gpu.counts["aten::mm"] + fake_gpu.counts["aten::addmm"] == 12
