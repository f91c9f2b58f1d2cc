"""The providers of the six costs that the contrastive bench measures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from amdim_fast import last_plan
from amdim_fast.bench.inputs import (
    Inputs,
    Losses,
    forward,
    forward_backward,
    our_losses,
    reference_losses,
)
from amdim_fast.bench.measure import allocated_peak
from amdim_fast.nce.losses import MultiNCEObjective

FORWARD, FORWARD_BACKWARD = MODES = ("forward", "forward_backward")
COMPILED = "reference_compiled"
PEERS = ("reference", COMPILED)


def _reference_objective(inputs: Inputs) -> MultiNCEObjective:
    values = reference_losses(inputs)
    return MultiNCEObjective(
        torch.stack(tuple(values)).sum(), *(value.detach() for value in values)
    )


def _ours(backend: str) -> dict[str, Losses]:
    """With gradients for one objective, as pre-training; for any upstream; with least memory."""
    return {
        f"{backend}_objective": our_losses(backend=backend),
        backend: our_losses(objective=False, backend=backend),
        f"{backend}_least": our_losses(memory_budget=0, backend=backend),
    }


LOSSES: dict[str, Losses] = {
    "reference": reference_losses,
    COMPILED: torch.compile(_reference_objective, dynamic=False),
    **_ours("torch"),
    **_ours("triton"),
    "triton_limbs": our_losses(backend="triton", precision="limbs"),
}
# The bare matrix products of the scores, a @ b.T; they compute no loss.
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gemms": lambda a, b: torch.mm(a, b.t()),
    "gemms_onednn": lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""),
}


def run(provider: str, mode: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """The four values, and for forward_backward the gradients of the six maps."""
    if provider in PRODUCTS:
        _run_products(PRODUCTS[provider], mode, inputs)
        return ()
    return (forward if mode == FORWARD else forward_backward)(LOSSES[provider], inputs)


def _run_products(multiply: Callable[[Tensor, Tensor], Tensor], mode: str, inputs: Inputs) -> None:
    """Every product whole: one forward, three forward + backward.

    On a GPU, half types are accumulated to float32 scores and multiplied with gradients of their
    own type, which lie in the memory of the scores.
    """
    maps = [features.detach().permute(0, 2, 3, 1).flatten(1, 2) for features in inputs.maps]
    for r1, r5, _, _, r5_other, r7_other in (maps, [*maps[3:], *maps[:3]]):
        source = torch.cat([r1[:, 0], r5[:, 0]])
        for src, trg in ((source, r5_other), (source[: len(r1)], r7_other)):
            columns = trg.flatten(0, 1)
            if src.is_cuda and src.itemsize == 2:
                scores = torch.mm(src, columns.t(), out_dtype=torch.float32)
            else:
                scores = multiply(src, columns)
            if mode == FORWARD_BACKWARD:
                grads = scores.view(src.dtype)[:, : len(columns)]
                multiply(grads, columns.t())
                multiply(grads.t(), src.t())


def extra_peak(provider: str, mode: str, inputs: Inputs) -> tuple[int, str]:
    """Bytes allocated at the peak of a call, less the gradients', and the plan it followed."""
    size = allocated_peak(partial(run, provider, mode, inputs), inputs.maps[0].device.type)
    plan = None if provider in PEERS else last_plan()
    note = "plan: " + ", ".join(part.mode for part in plan.pairings) if plan else ""
    return size - (inputs.nbytes if mode == FORWARD_BACKWARD else 0), note
