"""As a script, ``python -m tests.kernels.interpreted_cases PATH``: the kernels' results, saved.

Then nothing has changed Triton's interpreter.
"""

import os
import sys

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl

from amdim_fast import nce_log_prob, nce_objective
from amdim_fast.nce.inputs import NEGATIVES
from tests.nce.cases import features


@triton.jit
def add(out, value, count):
    places = tl.arange(0, 4)
    tl.store(out + places, tl.load(out + places) + value, mask=places < count)


def results():
    """Values and gradients of the public functions, in two types and both kinds of negatives."""
    torch.manual_seed(0)
    found = []
    for dtype in (torch.float32, torch.float16):
        for negatives in NEGATIVES:
            src, trg = features(5, 3, 24, sets=2, dtype=dtype)
            options = {"negatives": negatives, "backend": "triton"}
            output = nce_log_prob(src, trg, **options)
            objective = nce_objective(src, trg, mean_sq_weight=0.1, **options)
            for value in (output.log_prob.sum() + output.mean_sq.sum(), objective.objective):
                found += [value, *torch.autograd.grad(value, (src, trg))]
            found += [*output, *objective]
    return [value.detach() for value in found]


if __name__ == "__main__":
    torch.save(results(), sys.argv[1])
