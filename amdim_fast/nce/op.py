"""``amdim_fast::nce_forward`` and ``nce_backward``: schema, fake, autograd.

One call takes several groups, each with sources [S, B, D] stacked against shared targets
[B, L, D], and packs what it returns into flat tensors: a whole loss is one operator boundary. A
group may draw one more source set from the targets of another group, one location an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amdim_fast.nce.call import NO_PICK, Call, log_prob_of, record
from amdim_fast.nce.group_op import nce_group_forward
from amdim_fast.nce.library import LIBRARY

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
    group_name: str | None = None,
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
        group_name: process group whose other ranks' images are negatives too, or None.

    Returns:
        Flat tensors, group after group, S with the picked set: loss [S] = -mean(log_prob),
        log_prob [S, B, L] and mean_sq [S], differentiable, and pos [S, B, L].
    """
    pick_from = [NO_PICK] * len(srcs) if pick_from is None else list(pick_from)
    if group_name is not None:
        options = pick_from, clip, same_location, backend, memory_budget, group_name
        return nce_group_forward(srcs, trgs, picks, *options)
    with_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (*srcs, *trgs))
    loss, log_prob, mean_sq, pos, _, _ = torch.ops.amdim_fast.nce_forward(
        srcs, trgs, picks, pick_from, clip, same_location, backend, memory_budget, with_grad
    )
    return loss, log_prob, mean_sq, pos


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    call = Call(*arguments)
    with torch.no_grad(), torch.autocast(call.srcs[0].device.type, enabled=False):
        groups = call.groups()
        poses, negs, squares, kept = zip(
            *(call.implementation.forward(group) for group in groups), strict=True
        )
        log_probs = [log_prob_of(pos, neg) for pos, neg in zip(poses, negs, strict=True)]
        losses = [-log_prob.mean(dim=(1, 2)) for log_prob in log_probs]
        loss, log_prob, mean_sq, pos, neg = (
            torch.cat([part.flatten() for part in parts])
            for parts in (losses, log_probs, squares, poses, negs)
        )
    record(call, groups)
    return loss, log_prob, mean_sq, pos, neg, [block for blocks in kept for block in blocks]


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    call = Call(*arguments)
    sets, scores, sums = sum(call.sets), sum(call.score_sizes), sum(call.sum_sizes)
    loss, log_prob, mean_sq, pos, neg = (
        call.srcs[0].new_empty(size, dtype=call.dtype)
        for size in (sets, scores, sets, scores, sums)
    )
    kept = [
        call.srcs[0].new_empty(shape, dtype=call.dtype)
        for index in range(len(call.shapes))
        for shape in call.kept_shapes(index)
    ]
    return loss, log_prob, mean_sq, pos, neg, kept


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
    *rest: Any,
) -> list[Tensor]:
    *settings, need_srcs, need_trgs = rest
    call = Call(*(srcs, trgs, picks, *settings, True))
    poses, negs = pos.split(call.score_sizes), neg.split(call.sum_sizes)
    of_loss, of_log_prob, of_mean_sq = (
        [None] * len(srcs) if packed is None else packed.split(sizes)
        for packed, sizes in (
            (grad_loss, call.sets),
            (grad_log_prob, call.score_sizes),
            (grad_mean_sq, call.sets),
        )
    )
    blocks = iter(kept)
    grad_srcs: list[Tensor | None] = []
    grad_trgs: list[Tensor | None] = []
    with torch.no_grad(), torch.autocast(srcs[0].device.type, enabled=False):
        for index, group in enumerate(call.groups()):
            shape, origin = call.shapes[index], call.pick_from[index]
            grad_src, grad_trg = call.implementation.backward(
                group,
                [next(blocks) for _ in call.kept_shapes(index)],
                poses[index].view(shape),
                negs[index].view(*shape[:2], -1),
                call.total_grad_log_prob(index, of_loss[index], of_log_prob[index]),
                of_mean_sq[index],
                need_src=need_srcs[index] or (origin != NO_PICK and need_trgs[origin]),
                need_trg=need_trgs[index],
            )
            grad_srcs.append(grad_src)
            grad_trgs.append(grad_trg)
        call.add_picked(grad_srcs, grad_trgs)
    wanted = [
        grad[: src.shape[0]].to(src.dtype)
        for grad, src, need in zip(grad_srcs, srcs, need_srcs, strict=True)
        if need and grad is not None
    ]
    return wanted + [grad for grad in grad_trgs if grad is not None]


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
        " amdim_fast.nce.reference.nce_log_prob has one"
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
