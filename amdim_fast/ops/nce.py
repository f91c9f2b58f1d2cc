"""``amdim_fast::nce_forward`` and ``nce_backward``: schema, fake, autograd.

One call takes several groups, each with sources [S, B, D] stacked against shared targets
[B, L, D], and packs what it returns into flat tensors: a whole loss is one operator boundary. A
group may draw one more source set from the targets of another group, one location an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from amdim_fast.ops import nce_torch
from amdim_fast.ops._library import LIBRARY
from amdim_fast.ops.backend import resolve_backend
from amdim_fast.ops.plan import GroupPlan, Plan, padded, plan_groups, record_plan
from amdim_fast.ops.product import product_library

LIBRARY.define(
    "nce_forward(Tensor[] srcs, Tensor[] trgs, Tensor[] picks, int[] pick_from, float? clip,"
    " bool same_location, str backend, int memory_budget, bool with_grad)"
    " -> (Tensor loss, Tensor log_prob, Tensor mean_sq, Tensor pos, Tensor neg, Tensor[] kept)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "nce_backward(Tensor[] srcs, Tensor[] trgs, Tensor[] picks, Tensor pos, Tensor neg,"
    " Tensor[] kept, Tensor? grad_loss, Tensor? grad_log_prob, Tensor? grad_mean_sq,"
    " int[] pick_from, float? clip,"
    " bool same_location, str backend, int memory_budget, bool[] need_srcs, bool[] need_trgs)"
    " -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)

NO_PICK = -1


def nce_forward(
    srcs: Sequence[Tensor],
    trgs: Sequence[Tensor],
    *,
    picks: Sequence[Tensor] = (),
    pick_from: Sequence[int] | None = None,
    clip: float | None,
    same_location: bool = False,
    backend: str,
    memory_budget: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Call the op on checked inputs.

    Args:
        srcs: [S, B, D] a group.
        trgs: [B, L, D] a group.
        picks: int64 [B] for each group that has a picked source: one location an image.
        pick_from: for each group, the group whose targets are picked from, or NO_PICK; the picked
            source is the group's last set.
        clip: bound on |score| in nats, or None.
        same_location: whether negatives are taken at the same location only.
        backend: "auto", "torch" or "triton"; what it stands for is decided where the tensors are.
        memory_budget: bytes for blocks of scores.

    Returns:
        Flat tensors, group after group, S with the picked set: loss [S] = -mean(log_prob),
        log_prob [S, B, L] and mean_sq [S], differentiable, and pos [S, B, L].
    """
    pick_from = [NO_PICK] * len(srcs) if pick_from is None else list(pick_from)
    with_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (*srcs, *trgs))
    loss, log_prob, mean_sq, pos, _, _ = torch.ops.amdim_fast.nce_forward(
        srcs, trgs, picks, pick_from, clip, same_location, backend, memory_budget, with_grad
    )
    return loss, log_prob, mean_sq, pos


def _score_shapes(
    srcs: Sequence[Tensor], trgs: Sequence[Tensor], pick_from: Sequence[int]
) -> list[tuple[int, int, int]]:
    """(S, B, L) of each group, the picked set included."""
    return [
        (src.shape[0] + (origin != NO_PICK), src.shape[1], trg.shape[1])
        for src, trg, origin in zip(srcs, trgs, pick_from, strict=True)
    ]


def _plans(
    shapes: Sequence[tuple[int, int, int]], like: Tensor, memory_budget: int, with_grad: bool
) -> tuple[GroupPlan, ...]:
    return plan_groups(
        [(sets * images, images, locations) for sets, images, locations in shapes],
        itemsize=nce_torch.compute_dtype(like.dtype).itemsize,
        device_type=like.device.type,
        memory_budget=memory_budget,
        with_grad=with_grad,
    )


def _groups(
    srcs: Sequence[Tensor],
    trgs: Sequence[Tensor],
    picks: Sequence[Tensor],
    pick_from: Sequence[int],
    clip: float | None,
    same_location: bool,
    plans: Sequence[GroupPlan],
    backend: str,
) -> list[nce_torch.Group]:
    """Inputs of each group, the picked sources stacked below the given ones."""
    given = srcs[0].dtype
    dtype = given if backend == "triton" else nce_torch.compute_dtype(given)
    location = iter(picks)
    groups = []
    for src, trg, origin, plan in zip(srcs, trgs, pick_from, plans, strict=True):
        stacked = src.to(dtype)
        if origin != NO_PICK:
            stacked = torch.cat([stacked, _picked(trgs[origin], next(location))[None].to(dtype)])
        groups.append(nce_torch.Group(stacked.contiguous(), trg, clip, same_location, plan))
    return groups


def _implementation(backend: str) -> ModuleType:
    """Module with the forward and backward of one group; loads triton only if it is used."""
    if backend == "torch":
        return nce_torch
    from amdim_fast.ops import nce_triton

    return nce_triton


def _picked(trg: Tensor, location: Tensor) -> Tensor:
    """[B, D] targets at one location an image; on a GPU an index out of range is an assertion."""
    count = trg.shape[1]
    if location.device.type == "cpu" and not ((location >= 0) & (location < count)).all():
        raise ValueError(
            f"locations has an entry outside 0..{count - 1}; each must be a place in the map"
        )
    return trg[torch.arange(trg.shape[0], device=trg.device), location]


def _forward(
    srcs: list[Tensor],
    trgs: list[Tensor],
    picks: list[Tensor],
    pick_from: list[int],
    clip: float | None,
    same_location: bool,
    backend: str,
    memory_budget: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    backend = resolve_backend(backend, srcs[0].dtype, srcs[0].device)
    implementation = _implementation(backend)
    plans = _plans(_score_shapes(srcs, trgs, pick_from), srcs[0], memory_budget, with_grad)
    with torch.no_grad(), torch.autocast(srcs[0].device.type, enabled=False):
        groups = _groups(srcs, trgs, picks, pick_from, clip, same_location, plans, backend)
        poses, negs, squares, kept = zip(*(implementation.forward(g) for g in groups), strict=True)
        log_probs = [
            -torch.logaddexp(neg - pos, torch.zeros_like(pos))
            for pos, neg in zip(poses, negs, strict=True)
        ]
        losses = [-log_prob.mean(dim=(1, 2)) for log_prob in log_probs]
        loss, log_prob, mean_sq, pos, neg = (
            torch.cat([part.flatten() for part in parts])
            for parts in (losses, log_probs, squares, poses, negs)
        )
    record_plan(Plan(backend, product_library(groups[0].src, backend), plans, memory_budget))
    return loss, log_prob, mean_sq, pos, neg, [block for blocks in kept for block in blocks]


def _forward_fake(
    srcs: list[Tensor],
    trgs: list[Tensor],
    picks: list[Tensor],
    pick_from: list[int],
    clip: float | None,
    same_location: bool,
    backend: str,
    memory_budget: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    backend = resolve_backend(backend, srcs[0].dtype, srcs[0].device)
    shapes = _score_shapes(srcs, trgs, pick_from)
    plans = _plans(shapes, srcs[0], memory_budget, with_grad)
    scores = sum(math.prod(shape) for shape in shapes)
    rows = sum(sets * images for sets, images, _ in shapes)
    sets = sum(sets for sets, _, _ in shapes)
    dtype = nce_torch.compute_dtype(srcs[0].dtype)
    loss, log_prob, mean_sq, pos, neg = (
        srcs[0].new_empty(size, dtype=dtype)
        for size in (sets, scores, sets, scores, scores if same_location else rows)
    )
    kept = [
        srcs[0].new_empty(block, dtype=dtype)
        for shape, plan in zip(shapes, plans, strict=True)
        for block in _kept_blocks(shape, plan, backend)
    ]
    return loss, log_prob, mean_sq, pos, neg, kept


def _kept_blocks(
    shape: tuple[int, int, int], plan: GroupPlan, backend: str
) -> list[tuple[int, ...]]:
    """Shapes of what a group keeps: padded rows for all blocks, or a flat tensor a block."""
    if plan.mode != "keep":
        return []
    sets, images, locations = shape
    if backend == "triton":
        return [(sets, images, padded(images * locations))]
    starts = range(0, images, plan.block_images)
    counts = [min(plan.block_images, images - start) for start in starts]
    return [(sets * images * count * locations,) for count in counts]


def _backward(
    srcs: list[Tensor],
    trgs: list[Tensor],
    picks: list[Tensor],
    pos: Tensor,
    neg: Tensor,
    kept: list[Tensor],
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_mean_sq: Tensor | None,
    pick_from: list[int],
    clip: float | None,
    same_location: bool,
    backend: str,
    memory_budget: int,
    need_srcs: list[bool],
    need_trgs: list[bool],
) -> list[Tensor]:
    backend = resolve_backend(backend, srcs[0].dtype, srcs[0].device)
    implementation = _implementation(backend)
    shapes = _score_shapes(srcs, trgs, pick_from)
    plans = _plans(shapes, srcs[0], memory_budget, with_grad=True)
    sizes = [math.prod(shape) for shape in shapes]
    neg_sizes = sizes if same_location else [sets * images for sets, images, _ in shapes]
    sets = [shape[0] for shape in shapes]
    blocks = iter(kept)
    grad_srcs: list[Tensor | None] = []
    grad_trgs: list[Tensor | None] = []
    with torch.no_grad(), torch.autocast(srcs[0].device.type, enabled=False):
        groups = _groups(srcs, trgs, picks, pick_from, clip, same_location, plans, backend)
        for index, (group, shape, own, sums, from_loss, upstream, square) in enumerate(
            zip(
                groups,
                shapes,
                pos.split(sizes),
                neg.split(neg_sizes),
                _split(grad_loss, sets),
                _split(grad_log_prob, sizes),
                _split(grad_mean_sq, sets),
                strict=True,
            )
        ):
            origin = pick_from[index]
            grad_src, grad_trg = implementation.backward(
                group,
                [next(blocks) for _ in _kept_blocks(shape, plans[index], backend)],
                own.view(shape),
                sums.view(*shape[:2], -1),
                _grad_log_prob(shape, from_loss, upstream),
                square,
                need_src=need_srcs[index] or (origin != NO_PICK and need_trgs[origin]),
                need_trg=need_trgs[index],
            )
            grad_srcs.append(grad_src)
            grad_trgs.append(grad_trg)
        _add_picked(grad_srcs, grad_trgs, picks, pick_from)
    wanted = [
        grad[: src.shape[0]].to(src.dtype)
        for grad, src, need in zip(grad_srcs, srcs, need_srcs, strict=True)
        if need and grad is not None
    ]
    return wanted + [grad for grad in grad_trgs if grad is not None]


def _split(packed: Tensor | None, sizes: list[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if packed is None else packed.split(sizes)


def _grad_log_prob(
    shape: tuple[int, int, int], from_loss: Tensor | None, upstream: Tensor | None
) -> Tensor | None:
    """Gradient of log_prob [S, B, L]: its own, and its share in ``loss = -mean(log_prob)``."""
    total = None if upstream is None else upstream.reshape(shape)
    if from_loss is not None:
        share = (from_loss / -(shape[1] * shape[2])).view(-1, 1, 1).expand(shape)
        total = share if total is None else total + share
    return total


def _add_picked(
    grad_srcs: list[Tensor | None],
    grad_trgs: list[Tensor | None],
    picks: Sequence[Tensor],
    pick_from: Sequence[int],
) -> None:
    """Add the gradient of each picked source to the targets it came from; one row an image."""
    location = iter(picks)
    for origin, grad_src in zip(pick_from, grad_srcs, strict=True):
        if origin == NO_PICK:
            continue
        index = next(location)
        grad_trg = grad_trgs[origin]
        if grad_trg is not None and grad_src is not None:
            rows = torch.arange(grad_trg.shape[0], device=grad_trg.device)
            grad_trg[rows, index] = (grad_trg[rows, index] + grad_src[-1]).to(grad_trg.dtype)


def _backward_fake(srcs: list[Tensor], trgs: list[Tensor], *rest: Any) -> list[Tensor]:
    needed = zip((*srcs, *trgs), (*rest[-2], *rest[-1]), strict=True)
    return [tensor.new_empty(tensor.shape) for tensor, need in needed if need]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    srcs, trgs, picks, *ctx.settings = inputs
    *_, pos, neg, kept = output
    ctx.groups, ctx.picks = len(srcs), len(picks)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(pos, neg, *kept)
    ctx.save_for_backward(pos, neg, *srcs, *trgs, *picks, *kept)


def _autograd(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    grad_loss, grad_log_prob, grad_mean_sq, *_ = grads
    pos, neg, *rest = ctx.saved_tensors
    srcs, trgs, picks, kept = (
        [rest.pop(0) for _ in range(count)]
        for count in (ctx.groups, ctx.groups, ctx.picks, len(rest) - 2 * ctx.groups - ctx.picks)
    )
    need_srcs, need_trgs = (list(need) for need in ctx.needs_input_grad[:2])
    *settings, _ = ctx.settings
    found = iter(
        torch.ops.amdim_fast.nce_backward(
            srcs,
            trgs,
            picks,
            pos,
            neg,
            kept,
            grad_loss,
            grad_log_prob,
            grad_mean_sq,
            *settings,
            need_srcs,
            need_trgs,
        )
    )
    grad_srcs = [next(found) if need else None for need in need_srcs]
    grad_trgs = [next(found) if need else None for need in need_trgs]
    return grad_srcs, grad_trgs, [None] * len(picks), *[None] * len(ctx.settings)


def _no_double_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(
        "nce_log_prob: a second derivative is not supported; on small inputs"
        " amdim_fast.reference.nce.nce_log_prob has one"
    )


for _name, _kernel, _fake in (
    ("nce_forward", _forward, _forward_fake),
    ("nce_backward", _backward, _backward_fake),
):
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"amdim_fast::{_name}", _fake, lib=LIBRARY)
torch.library.register_autograd(
    "amdim_fast::nce_forward", _autograd, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd("amdim_fast::nce_backward", _no_double_backward, lib=LIBRARY)
