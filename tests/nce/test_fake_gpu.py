"""The branches for CUDA tensors, run on fake ones: types, shapes and operations, no results.

What the results are, only a GPU can tell: ``tests/nce/test_gpu.py``.
"""

import pytest
import torch

from amdim_fast.nce import op_kernels, plan
from amdim_fast.nce.way import padded
from tests.nce.cases import row_results_bytes
from tests.nce.dispatched import LargeTensors
from tests.nce.fakes import DTYPES, IMAGES, NEEDS, fake_gpu, inputs


@pytest.fixture
def launches(monkeypatch):
    with fake_gpu(monkeypatch) as found:
        yield found


@pytest.mark.parametrize("backend_name", ["torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("chunks", [1, 2])
def test_objective(monkeypatch, launches, backend_name, dtype, budget, chunks):
    monkeypatch.setattr(plan, "LEAST_ROWS", 48)
    monkeypatch.setattr(plan, "LEAST_COLUMNS", 32 * 25)
    if chunks > 1:
        row_bytes = 4 * padded(IMAGES * 49)
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
        assert launches.total == found.launches - 1  # the backward's scaling


@pytest.mark.parametrize("backend_name", ["torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("clip", [20.0, None])
def test_forward_and_backward(monkeypatch, launches, backend_name, dtype, budget, clip):
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
        assert launches.total == found.launches


def test_launches_of_bfloat16(launches):
    op_kernels.objective(*inputs(torch.bfloat16, "triton"), NEEDS)
    assert launches.total <= 24 - 3, launches.counts  # locations, root gradient, scaling
    assert launches.counts["aten::mm"] + launches.counts["aten::addmm"] == 12


# B and D where parts of float16's products, not pieces of scores, are the most beside the scores.
SIZES = {"torch": (256, 1024), "triton": (1024, 2048)}


def of_one_pass(given, counted):
    """Bytes beside the gradients."""
    gradients = op_kernels.objective(*given, NEEDS)[-1]
    return counted.peak - gradients.nbytes


def of_general(given, counted):
    """Bytes in the forward or, beside the gradients, in the backward."""
    totals, loss, _, mean_sq, score, saved = op_kernels.forward(*given, None, NEEDS)
    in_forward, counted.peak = counted.peak, counted.alive
    grads = op_kernels.backward(*given, None, NEEDS, [score, *saved], totals, loss, None, mean_sq)
    return max(in_forward, counted.peak - sum(grad.nbytes for grad in grads))


@pytest.mark.parametrize("taken", [of_one_pass, of_general])
@pytest.mark.parametrize("backend_name", SIZES)
@pytest.mark.parametrize("kind", [*DTYPES, "limbs"], ids=str)
@pytest.mark.parametrize("budget", [None, 0])
def test_memory_is_what_the_plan_says(launches, backend_name, kind, budget, taken):
    images, width = SIZES[backend_name]
    dtype, precision = (torch.float32, kind) if kind == "limbs" else (kind, "auto")
    given = inputs(dtype, backend_name, budget, images=images, width=width)
    given = given._replace(precision=precision)
    with LargeTensors(1, [*given.srcs, *given.trgs, *given.picks]) as counted:
        found = taken(given, counted)
    promised = plan.last_plan().peak_bytes
    # A forward is planned like one pass, whose gradients take more.
    least = 0.98 if taken is of_one_pass else 0.55
    assert least * promised <= found <= promised + row_results_bytes(images)
