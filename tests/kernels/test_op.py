"""The registered op over the Triton kernels: opcheck, compile, autocast, backward twice."""

import pytest
import torch

from amdim_fast import LossMultiNCE, nce_log_prob, nce_loss
from amdim_fast.nce import tiles, triton_passes
from amdim_fast.nce.op_inputs import Inputs
from amdim_fast.nce.wiring import NO_ORIGIN
from tests.nce.cases import (
    DEVICE,
    WAYS,
    evaluate,
    features,
    lower_floors,
    tile_set,
    upstream_like,
)

# Gaps between gradients, which nothing reads, are scaled too.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered in multiply")
OPS = torch.ops.amdim_fast
NEEDS = [True] * 5


@pytest.fixture(autouse=True, params=WAYS)
def _small_tiles(request, monkeypatch):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(request.param))
    lower_floors(monkeypatch)


def op_inputs(dtype=torch.float32, budget=0, clip=20.0, same_location=False, grad=True):
    """Two pairings share their given sources, and one draws from the other's targets."""
    srcs = [torch.randn(s, 3, 8, device=DEVICE).to(dtype) for s in (2, 1)]
    trgs = [torch.randn(3, n, 8, device=DEVICE).to(dtype) for n in (8, 4, 2)]
    for tensor in (*srcs, *trgs):
        tensor.requires_grad_(grad)
    picks = [torch.tensor([0, 3, 1], device=DEVICE)]
    where = [0, 0, 1], [1, NO_ORIGIN, NO_ORIGIN]
    options = clip, same_location, 3, 0.5, 0.05, "triton", "auto", budget
    return Inputs(srcs, trgs, picks, *where, *options)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", ["nce_forward", "nce_objective"])
@pytest.mark.parametrize(
    ("budget", "clip", "same_location"),
    [(0, 20.0, False), (2**20, 20.0, False), (1_500, None, True)],
)
def test_opcheck(monkeypatch, name, budget, clip, same_location):
    """Padding of kept scores and gaps between gradients are never written: here they are 0."""
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    inputs = op_inputs(budget=budget, clip=clip, same_location=same_location)
    group = (None,) if name == "nce_forward" else ()
    torch.library.opcheck(getattr(OPS, name).default, (*inputs, *group, NEEDS))


@pytest.mark.parametrize("budget", [0, 2**20])
def test_opcheck_backward(budget):
    inputs = op_inputs(dtype=torch.float16, budget=budget, grad=False)
    totals, loss, log_prob, mean_sq, scores, saved = OPS.nce_forward(*inputs, None, NEEDS)
    upstream = [torch.randn_like(part) for part in (totals, loss, log_prob, mean_sq)]
    for given in (upstream, [None, upstream[1], None, None]):
        arguments = (*inputs, None, NEEDS, [scores, *saved], *given)
        torch.library.opcheck(OPS.nce_backward.default, arguments)


def test_opcheck_scale():
    for upstream in (1.0, 2.5):
        arguments = (torch.randn(300, device=DEVICE), torch.tensor(upstream, device=DEVICE))
        torch.library.opcheck(OPS.nce_scale_.default, (*arguments, "triton"))


@pytest.mark.parametrize("kind", ["parts", "objective"])
def test_compiled_equals_eager_bit_for_bit(kind):
    maps = [
        torch.randn(3, 16, side, side, device=DEVICE)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for side in (1, 5, 7) * 2
    ]
    locations = (torch.arange(3, device=DEVICE), torch.arange(3, device=DEVICE) + 7)
    loss = LossMultiNCE(tclip=20.0, backend="triton")

    def alone(*maps, locations):
        return loss.objective(*maps, locations=locations)[:1]

    function = loss if kind == "parts" else alone
    results = []
    for call in (function, torch.compile(function, fullgraph=True)):
        outputs = call(*maps, locations=locations)
        results.append([*outputs, *torch.autograd.grad(0.3 * sum(outputs), maps)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(autocast_dtype):
    src, trg = features(7, 4, 12)
    upstream = upstream_like(src, trg)
    results = []
    for enabled in (False, True):
        with torch.autocast(DEVICE, dtype=autocast_dtype, enabled=enabled):
            results.append(evaluate(nce_log_prob, src, trg, upstream, backend="triton"))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("budget", [0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_two_backwards_agree_and_runs_repeat_bit_for_bit(budget, dtype):
    src, trg = features(11, 3, 24, sets=2, dtype=dtype)
    grads = []
    for _ in range(2):
        loss, mean_sq = nce_loss(src, trg, memory_budget=budget, backend="triton")
        total = (loss + mean_sq).sum()
        grads.append(torch.autograd.grad(total, (src, trg), retain_graph=True))
        grads.append(torch.autograd.grad(total, (src, trg)))
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, grads[0], strict=True))


@pytest.mark.parametrize("need", [(True, False), (False, True)])
def test_frozen_inputs_cost_no_product(monkeypatch, need):
    counted = []
    for name in ("write_source_gradient", "write_target_gradient"):
        write = getattr(triton_passes, name)
        monkeypatch.setattr(
            triton_passes,
            name,
            lambda *a, name=name, write=write, **o: counted.append(name) or write(*a, **o),
        )
    src, trg = features(9, 4, 8)
    src.requires_grad_(need[0])
    trg.requires_grad_(need[1])
    loss, _ = nce_loss(src, trg, backend="triton")
    loss.backward()
    assert set(counted) == {"write_source_gradient" if need[0] else "write_target_gradient"}
    assert (src.grad is not None, trg.grad is not None) == need


def test_second_derivative_is_refused():
    src, trg = features(3, 2, 4)
    loss, _ = nce_loss(src, trg, backend="triton")
    (grad,) = torch.autograd.grad(loss, src, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative is not supported"):
        grad.sum().backward()
