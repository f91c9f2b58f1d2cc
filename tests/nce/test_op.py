"""The registered ops: schemas, fakes, autograd, torch.compile, autocast."""

import pytest
import torch

from amdim_fast import LossMultiNCE, last_plan, nce_log_prob, nce_loss, nce_objective
from amdim_fast.nce.op_inputs import Inputs
from amdim_fast.nce.wiring import NO_ORIGIN
from tests.nce.cases import lower_floors

OPS = torch.ops.amdim_fast
# The smallest chunks and blocks; some scores; all.
BUDGETS = (0, 1_000, 2**20)
# Of two given sources and three targets.
ALL = (True,) * 5
NEEDS = (ALL, (True, False, False, False, True), (False, False, True, False, False))


@pytest.fixture(autouse=True)
def _small_work(monkeypatch):
    lower_floors(monkeypatch)


def op_inputs(dtype=torch.float32, budget=0, clip=20.0, same_location=False, needs=ALL):
    """Two pairings share their given sources, and one draws from the other's targets."""
    srcs = [torch.randn(sets, 5, 8, dtype=dtype) for sets in (2, 1)]
    trgs = [torch.randn(5, locations, 8, dtype=dtype) for locations in (4, 6, 3)]
    for tensor, need in zip((*srcs, *trgs), needs, strict=True):
        tensor.requires_grad_(need)
    picks = [torch.tensor([0, 5, 2, 3, 1])]
    return Inputs(
        srcs=srcs,
        trgs=trgs,
        picks=picks,
        src_of=[0, 0, 1],
        pick_from=[1, NO_ORIGIN, NO_ORIGIN],
        clip=clip,
        same_location=same_location,
        parts=3,
        loss_weight=0.5,
        mean_sq_weight=0.05,
        backend="torch",
        precision="auto",
        memory_budget=budget,
    )


def several(plan):
    """Whether some pairing is computed in several chunks or blocks."""
    return any(
        0 < pairing.chunk_rows < rows or pairing.block_images < 5
        for pairing, rows in zip(plan.pairings, (15, 10, 5), strict=True)
    )


# torch's own dynamic-shape check reads .grad of a tensor that is not a leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", ["nce_forward", "nce_objective"])
@pytest.mark.parametrize(
    ("budget", "clip", "same_location", "needs"),
    [(budget, 20.0, False, ALL) for budget in BUDGETS]
    + [(0, None, True, ALL), (2**20, None, True, ALL), (0, 100.0, False, ALL)]
    + [(budget, 20.0, False, needs) for needs in NEEDS[1:] for budget in (0, 2**20)],
)
def test_opcheck(name, budget, clip, same_location, needs):
    inputs = op_inputs(budget=budget, clip=clip, same_location=same_location, needs=needs)
    group = (None,) if name == "nce_forward" else ()
    torch.library.opcheck(getattr(OPS, name).default, (*inputs, *group, list(needs)))
    assert several(last_plan()) == (budget < 2**20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["nce_forward", "nce_objective"])
def test_opcheck_without_gradients(name, dtype):
    needs = (False,) * 5
    group = (None,) if name == "nce_forward" else ()
    arguments = (*op_inputs(dtype, needs=needs), *group, list(needs))
    torch.library.opcheck(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize("needs", NEEDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_opcheck_backward(budget, needs):
    needs = list(needs)
    inputs = op_inputs(budget=budget, needs=(False,) * 5)
    totals, loss, log_prob, mean_sq, _, saved = OPS.nce_forward(*inputs, None, needs)
    upstream = [torch.randn_like(part) for part in (totals, loss, log_prob, mean_sq)]
    scores = OPS.nce_forward(*inputs, None, needs)[4]
    for given in (upstream, [None, upstream[1], None, None]):
        arguments = (*inputs, None, needs, [scores, *saved], *given)
        torch.library.opcheck(OPS.nce_backward.default, arguments)


@pytest.mark.parametrize("keep", [0, 1])
def test_opcheck_of_what_a_graph_of_any_batch_size_calls(keep):
    """All scores are kept or none, whatever the plan says, and numbers are in a tensor."""
    needs = [True] * 5
    inputs = op_inputs(budget=0 if keep else None, clip=None, needs=(False,) * 5)
    numbers = torch.tensor([7.0, 0.2], dtype=torch.float64)
    *results, score, saved = OPS.nce_forward(*inputs, None, needs, keep, numbers)
    assert {pairing.mode for pairing in last_plan().pairings} == {("recompute", "keep")[keep]}
    entries = [15 * 5 * 4, 10 * 5 * 6, 5 * 5 * 3]
    assert [block.numel() for block in saved[3:]] == (entries if keep else [2] * 3)
    rest = None, needs, [score, *saved], *map(torch.ones_like, results), keep, numbers
    torch.library.opcheck(OPS.nce_backward.default, (*inputs, *rest))
    asked = inputs._replace(clip=7.0, mean_sq_weight=0.2, memory_budget=None)
    *expected, other, kept = OPS.nce_forward(*asked, None, needs)
    torch.testing.assert_close(results, expected)
    plain = None, needs, [other, *kept], *map(torch.ones_like, results)
    torch.testing.assert_close(
        OPS.nce_backward(*inputs, *rest), OPS.nce_backward(*asked, *plain), rtol=1e-5, atol=1e-6
    )


def test_opcheck_scale():
    for upstream in (1.0, 2.5):
        arguments = torch.randn(300), torch.tensor(upstream), "torch"
        torch.library.opcheck(OPS.nce_scale_.default, arguments)


def maps(images=6, width=16):
    return [
        torch.randn(images, width, side, side)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for side in (1, 5, 7) * 2
    ]


def test_compiled_functions_equal_eager_bit_for_bit():
    src = torch.randn(2, 6, 16, requires_grad=True)
    trg = torch.randn(6, 9, 16, requires_grad=True)

    def function(src, trg):
        output = nce_log_prob(src, trg, memory_budget=2_000)
        loss, _ = nce_loss(src, trg, clip=None)
        found = nce_objective(src, trg, mean_sq_weight=0.1, memory_budget=2_000)
        return output.log_prob, output.mean_sq, loss, found.objective

    compiled = torch.compile(function, fullgraph=True)
    upstream = [torch.randn(2, 6, 9), torch.randn(2), torch.randn(2), torch.randn(())]
    eager = function(src, trg)
    ours = compiled(src, trg)
    grads = [torch.autograd.grad(out, (src, trg), upstream) for out in (eager, ours)]
    for a, b in zip((*eager, *grads[0]), (*ours, *grads[1]), strict=True):
        assert torch.equal(a, b)


def four(loss):
    return lambda *inputs, **options: loss(*inputs, **options)


def alone(loss):
    return lambda *inputs, **options: loss.objective(*inputs, **options)[:1]


@pytest.mark.parametrize("outputs_of", [four, alone])
def test_compiled_loss_equals_eager_bit_for_bit(outputs_of):
    inputs = maps()
    locations = (torch.arange(6), torch.arange(6) + 7)
    function = outputs_of(LossMultiNCE(tclip=20.0))
    results = []
    for called in (function, torch.compile(function, fullgraph=True)):
        outputs = called(*inputs, locations=locations)
        results.append([*outputs, *torch.autograd.grad(sum(outputs), inputs)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_compiled_for_any_batch_size():
    loss = LossMultiNCE(tclip=20.0)
    compiled = torch.compile(loss.objective, fullgraph=True, dynamic=True)
    for images in (6, 9, 13):
        inputs = maps(images)
        locations = (torch.arange(images), torch.arange(images) + 7)
        results = []
        for called in (loss.objective, compiled):
            found = called(*inputs, locations=locations)
            results.append([*found, *torch.autograd.grad(found.objective, inputs)])
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("outputs_of", [four, alone])
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(autocast_dtype, outputs_of):
    inputs = maps()
    locations = (torch.arange(6), torch.arange(6) + 7)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=autocast_dtype, enabled=enabled):
            outputs = outputs_of(LossMultiNCE())(*inputs, locations=locations)
            results.append([*outputs, *torch.autograd.grad(sum(outputs), inputs)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
