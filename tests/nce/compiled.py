"""What tests of compiled losses share: inputs of any batch size, and eager results beside others.

The eager loss is the truth here; its own tests hold it to float64.
"""

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from amdim_fast import (
    FeatureMapContrastiveTask,
    LossMultiNCE,
    nce_log_prob,
    nce_loss,
    nce_objective,
)
from amdim_fast.nce.mixture import MixtureNCELoss

# No batch has this size: torch takes equal sizes for one.
WIDTH = 16


def pair(images):
    return [torch.randn(images, WIDTH), torch.randn(images, 9, WIDTH)]


def maps(images):
    return [torch.randn(images, WIDTH, side, side) for side in (1, 5, 7) * 2]


def components(images):
    found = maps(images)
    for index in (0, 3):
        found[index] = torch.randn(3, images, WIDTH)
    return found


def log_prob(src, trg):
    found = nce_log_prob(src, trg)
    return found.log_prob.square().sum(), found.mean_sq


def objective(src, trg):
    return nce_objective(src, trg, mean_sq_weight=0.1)[:1]


def small_budget(src, trg):
    return nce_loss(src, trg, memory_budget=2**15)


def task():
    module = FeatureMapContrastiveTask("01, 02, 11")
    return lambda *given: module(given[:3], given[3:])


# A function or module with differentiable results, and its inputs for some images.
CASES = {
    "loss": (lambda: nce_loss, pair),
    "log_prob": (lambda: log_prob, pair),
    "objective": (lambda: objective, pair),
    "small budget": (lambda: small_budget, pair),
    "multi": (lambda: LossMultiNCE(20.0), maps),
    "multi objective": (lambda: lambda *given: LossMultiNCE(20.0).objective(*given)[:1], maps),
    "task": (task, maps),
    "mixture": (lambda: lambda *given: MixtureNCELoss()(*given)[:4], components),
}


def evaluated(function, inputs):
    """Results and gradients of their sum, with locations from a fixed seed."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    torch.manual_seed(3)
    found = function(*leaves)
    return [*found, *torch.autograd.grad(sum(part.sum() for part in found), leaves)]


def compiled(function, backend="aot_eager", **options):
    """The function, compiled, and the counter of its graphs."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, **options), counter


def assert_equal(found, expected):
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value, other)
