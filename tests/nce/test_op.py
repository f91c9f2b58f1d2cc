"""The registered op: schema, fake, autograd, torch.compile, autocast."""

import pytest
import torch

from amdim_fast import LossMultiNCE, nce_log_prob, nce_loss
from amdim_fast.nce.op import NO_ORIGIN


def op_arguments(dtype=torch.float32, budget=0, clip=20.0, same_location=False):
    srcs = [torch.randn(1, 5, 8, dtype=dtype), torch.randn(2, 5, 8, dtype=dtype)]
    trgs = [torch.randn(5, 4, 8, dtype=dtype), torch.randn(5, 6, 8, dtype=dtype)]
    for tensor in (*srcs, *trgs):
        tensor.requires_grad_()
    locations = [torch.tensor([0, 5, 2, 3, 1])]
    return (srcs, trgs, locations, [1, NO_ORIGIN], clip, same_location, "torch", budget, True)


# torch's own dynamic-shape check reads .grad of a tensor that is not a leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("budget", [0, 3_500, 2**20])
@pytest.mark.parametrize("clip", [20.0, None])
@pytest.mark.parametrize("same_location", [False, True])
def test_opcheck(budget, clip, same_location):
    arguments = op_arguments(budget=budget, clip=clip, same_location=same_location)
    torch.library.opcheck(torch.ops.amdim_fast.nce_forward.default, arguments)


def test_opcheck_backward():
    srcs, trgs, locations, *settings, with_grad = op_arguments()
    with torch.no_grad():
        loss, _, mean_sq, score, neg, kept = torch.ops.amdim_fast.nce_forward(
            srcs, trgs, locations, *settings, with_grad
        )
    inputs = ([t.detach() for t in srcs], [t.detach() for t in trgs], locations)
    upstream = (torch.randn_like(loss), torch.randn_like(score), torch.randn_like(mean_sq))
    needed = ([True, False], [True, True])
    arguments = (*inputs, score, neg, kept, *upstream, *settings, *needed)
    torch.library.opcheck(torch.ops.amdim_fast.nce_backward.default, arguments)


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
        return output.log_prob, output.mean_sq, loss

    compiled = torch.compile(function, fullgraph=True)
    upstream = [torch.randn(2, 6, 9), torch.randn(2), torch.randn(2)]
    eager = function(src, trg)
    ours = compiled(src, trg)
    grads = [torch.autograd.grad(out, (src, trg), upstream) for out in (eager, ours)]
    for a, b in zip((*eager, *grads[0]), (*ours, *grads[1]), strict=True):
        assert torch.equal(a, b)


def test_compiled_loss_equals_eager_bit_for_bit():
    inputs = maps()
    locations = (torch.arange(6), torch.arange(6) + 7)
    loss = LossMultiNCE(tclip=20.0)
    compiled = torch.compile(loss, fullgraph=True)
    results = []
    for module in (loss, compiled):
        outputs = module(*inputs, locations=locations)
        results.append([*outputs, *torch.autograd.grad(sum(outputs), inputs)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(autocast_dtype):
    inputs = maps()
    locations = (torch.arange(6), torch.arange(6) + 7)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=autocast_dtype, enabled=enabled):
            outputs = LossMultiNCE()(*inputs, locations=locations)
            results.append([*outputs, *torch.autograd.grad(sum(outputs), inputs)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
