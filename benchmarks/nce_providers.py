"""The providers of the six costs that the contrastive bench measures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from amdim_fast import LossMultiNCE, last_plan
from amdim_fast.bench.inputs import CLIP, Inputs, Losses, forward_backward, reference_losses
from amdim_fast.bench.measure import allocated_peak
from amdim_fast.nce.plan import DEFAULT_MEMORY_BUDGET, plan_pairings
from amdim_fast.nce.products import product
from amdim_fast.nce.torch_backend import work_rule

FORWARD, FORWARD_BACKWARD = MODES = ("forward", "forward_backward")
# Room for work blocks of 4 MiB, and for no kept scores at the sizes measured.
RECOMPUTE_BUDGET = 12 * 2**20


def _loss(memory_budget: int | None, backend: str) -> Losses:
    module = LossMultiNCE(tclip=CLIP, memory_budget=memory_budget, backend=backend)
    return lambda inputs: module(*inputs.maps, locations=inputs.locations)


LOSSES: dict[str, Losses] = {
    "reference": reference_losses,
    "reference_compiled": torch.compile(reference_losses, dynamic=False),
    "torch": _loss(None, "torch"),
    "torch_recompute": _loss(RECOMPUTE_BUDGET, "torch"),
    "triton": _loss(None, "triton"),
}
# The bare matrix products of the scores, which compute no loss.
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gemms": lambda a, b: torch.mm(a, b.t()),
    "gemms_onednn": product,
}


def run(provider: str, mode: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """The four values, and for forward_backward the gradients of the six maps."""
    if provider in PRODUCTS:
        _run_products(PRODUCTS[provider], mode, inputs)
        return ()
    with torch.set_grad_enabled(mode == FORWARD_BACKWARD):
        if mode == FORWARD:
            return tuple(LOSSES[provider](inputs))
        return forward_backward(LOSSES[provider], inputs)


def _run_products(multiply: Callable[[Tensor, Tensor], Tensor], mode: str, inputs: Inputs) -> None:
    """The products alone, in the blocks of the op: one forward, three forward + backward."""
    r1, r5, r7, *_ = (
        features.detach().permute(0, 2, 3, 1).flatten(1, 2) for features in inputs.maps
    )
    source = torch.cat([r1[:, 0], r5[:, 0]])
    sources = (source, source[: len(r1)])
    plans = plan_pairings(
        [(len(src), len(trg), trg.shape[1]) for src, trg in zip(sources, (r5, r7), strict=True)],
        work_rule(r1.dtype, r1.device, r1.shape[-1], False),
        memory_budget=DEFAULT_MEMORY_BUDGET,
        with_grad=False,
    )
    for src, trg, plan in 2 * [*zip(sources, (r5, r7), plans, strict=True)]:
        for block in trg.split(plan.block_images):
            columns = block.flatten(0, 1)
            scores = multiply(src, columns)
            if mode == FORWARD_BACKWARD:
                multiply(scores, columns.t())
                multiply(scores.t(), src.t())


def extra_peak(provider: str, mode: str, inputs: Inputs) -> tuple[int, str]:
    """Bytes allocated at the peak of a call, less the gradients', and the plan it followed."""
    size = allocated_peak(partial(run, provider, mode, inputs), inputs.maps[0].device.type)
    plan = last_plan() if provider.startswith("torch") else None
    note = "plan: " + ", ".join(part.mode for part in plan.pairings) if plan else ""
    return size - (inputs.nbytes if mode == FORWARD_BACKWARD else 0), note
