"""``amdim_fast::nce_group_forward`` and ``nce_group_backward``: negatives from every rank.

Targets stay where they are. A rank gathers the sources of all ranks, scores them against its own
targets and sends each rank the sums of its rows; in the backward, the gradients of its sources. The
rest is local. With B images a rank, W ranks, and the scores' type for all but the sources, a rank
receives, for each group, (W - 1) B times

    forward:   S D of sources, S M of log-sums twice, S L of own scores
    backward:  S L of upstream gradients, S D of gradients of sources

where M is 1, or L for same_location; and a few scalars. A source that several groups share is sent
once, and so is its gradient. Targets, L D a row, are never sent.

Gradients are those of the sum of all ranks' objectives, so the average that
DistributedDataParallel takes is the gradient of their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amdim_fast.distributed.agreement import ErrorsOnAllRanks, agree, resolve
from amdim_fast.distributed.collectives import (
    Pending,
    join_rows,
    split_rows,
    start_exchange,
    start_gather,
)
from amdim_fast.nce.call import NO_PICK, Call, log_prob_of, record
from amdim_fast.nce.library import LIBRARY

LIBRARY.define(
    "nce_group_forward(Tensor[] srcs, Tensor[] trgs, Tensor[] picks, int[] pick_from, float? clip,"
    " bool same_location, str backend, int memory_budget, int[] src_of, bool[] needs,"
    " str group_name)"
    " -> (Tensor loss, Tensor log_prob, Tensor mean_sq, Tensor pos,"
    " Tensor all_pos, Tensor all_neg, Tensor[] all_srcs, Tensor[] kept)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "nce_group_backward(Tensor[] srcs, Tensor[] trgs, Tensor[] picks, Tensor all_pos,"
    " Tensor all_neg, Tensor[] all_srcs, Tensor[] kept, Tensor? grad_loss, Tensor? grad_log_prob,"
    " Tensor? grad_mean_sq, int[] pick_from, float? clip, bool same_location, str backend,"
    " int memory_budget, int[] src_of, str group_name, bool[] need_srcs, bool[] need_trgs)"
    " -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def nce_group_forward(
    srcs: Sequence[Tensor], trgs: Sequence[Tensor], picks: Sequence[Tensor], *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``nce_forward`` of this rank's rows with every rank's targets; options as there.

    mean_sq is over all pairs of all ranks and equal on every rank.
    """
    *settings, group_name = options
    unique: list[Tensor] = []
    src_of = []
    for src in srcs:
        place = next((i for i, known in enumerate(unique) if known is src), len(unique))
        unique += [src] if place == len(unique) else []
        src_of.append(place)
    enabled = torch.is_grad_enabled()
    needs = [enabled and tensor.requires_grad for tensor in (*unique, *trgs)]
    found = torch.ops.amdim_fast.nce_group_forward(
        unique, trgs, picks, *settings, src_of, needs, group_name
    )
    return found[:4]


def _local(srcs: Sequence[Tensor], src_of: Sequence[int], *rest: Any) -> Call:
    """The call of this rank alone."""
    return Call(*([srcs[place] for place in src_of], *rest))


def _stacks(local: Call, src_of: Sequence[int], all_srcs: Sequence[Tensor]) -> list[Tensor]:
    """Sources of each group of all ranks; behind the given ones of all_srcs are the picked ones."""
    extra = iter(all_srcs[len(all_srcs) - len(local.picks) :])
    return [
        all_srcs[place] if origin == NO_PICK else torch.cat([all_srcs[place], next(extra)])
        for place, origin in zip(src_of, local.pick_from, strict=True)
    ]


def _split(packed: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Tensors of these shapes, one after the other in a flat one."""
    parts = packed.split([torch.Size(shape).numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _sum_shapes(call: Call) -> list[tuple[int, int, int]]:
    """[S, B, 1] of the log-sums of each group, or [S, B, L]."""
    return [(s, b, locations if call.same_location else 1) for s, b, locations in call.shapes]


def _forward(*arguments: Any) -> tuple[Any, ...]:
    srcs, *inputs, src_of, needs, group_name = arguments
    with ErrorsOnAllRanks(group_name):
        local = _local(srcs, src_of, *inputs, any(needs))
        sent = [*srcs, *(extra for extra in local.picked() if extra is not None)]
    src = srcs[0]
    settings = local.pick_from, local.clip, local.same_location, src_of, needs
    signature = [(s, locations) for s, _, locations in local.shapes], src.shape[-1], src.dtype
    agree(group_name, src.shape[1], (src.device.type, signature, settings))

    group = resolve(group_name)
    rank, world, images = group.rank(), group.size(), src.shape[1]
    with torch.no_grad(), torch.autocast(src.device.type, enabled=False):
        gathers = [start_gather(part, group) for part in sent]
        all_srcs = [join_rows(gather.wait()).contiguous() for gather in gathers]
        call = local.of_all_ranks(_stacks(local, src_of, all_srcs))
        groups = call.groups()
        poses, exchanges, squares, kept = [], [], [], []
        for part in groups:
            pos, neg, mean_sq, blocks = call.implementation.forward(part, -rank * images)
            exchanges.append(start_exchange(split_rows(neg, world), group))
            poses.append(pos[:, rank * images : (rank + 1) * images])
            squares.append(mean_sq)
            kept += blocks
        negs = [torch.logsumexp(exchange.wait(), dim=0) for exchange in exchanges]
        log_probs = [log_prob_of(pos, neg) for pos, neg in zip(poses, negs, strict=True)]
        losses = [-log_prob.mean(dim=(1, 2)) for log_prob in log_probs]
        loss, log_prob, mean_sq, pos, neg = (
            torch.cat([part.flatten() for part in parts])
            for parts in (losses, log_probs, squares, poses, negs)
        )
        everyone = start_gather(torch.cat([pos, neg, mean_sq]), group).wait()
        of_pos, of_neg, of_mean_sq = everyone.split([len(pos), len(neg), len(mean_sq)], dim=1)
        all_pos = _join_groups(of_pos, local.shapes)
        all_neg = _join_groups(of_neg, _sum_shapes(local))
    record(call, groups)
    return loss, log_prob, of_mean_sq.mean(dim=0), pos, all_pos, all_neg, all_srcs, kept


def _join_groups(parts: Tensor, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
    """[W, sum of S * B * X] of the ranks -> flat [S, W * B, X], group after group."""
    split = parts.split([torch.Size(shape).numel() for shape in shapes], dim=1)
    joined = [
        join_rows(part.reshape(-1, *shape)).flatten()
        for part, shape in zip(split, shapes, strict=True)
    ]
    return torch.cat(joined)


def _forward_fake(*arguments: Any) -> tuple[Any, ...]:
    srcs, *inputs, src_of, needs, group_name = arguments
    local = _local(srcs, src_of, *inputs, any(needs))
    world, (_, images, width) = resolve(group_name).size(), srcs[0].shape
    sets = [src.shape[0] for src in srcs] + [1] * len(local.picks)
    src = srcs[0]
    all_srcs = [src.new_empty((count, world * images, width)) for count in sets]
    call = local.of_all_ranks(_stacks(local, src_of, all_srcs))
    losses, scores = sum(local.sets), sum(local.score_sizes)
    sizes = losses, scores, losses, scores, sum(call.score_sizes), sum(call.sum_sizes)
    packed = [src.new_empty(size, dtype=local.dtype) for size in sizes]
    kept = [
        src.new_empty(shape, dtype=local.dtype)
        for index in range(len(call.shapes))
        for shape in call.kept_shapes(index)
    ]
    return *packed, all_srcs, kept


def _backward(
    srcs: list[Tensor],
    trgs: list[Tensor],
    picks: list[Tensor],
    all_pos: Tensor,
    all_neg: Tensor,
    all_srcs: list[Tensor],
    kept: list[Tensor],
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_mean_sq: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    *settings, src_of, group_name, need_srcs, need_trgs = rest
    local = _local(srcs, src_of, trgs, picks, *settings, True)
    call = local.of_all_ranks(_stacks(local, src_of, all_srcs))
    group, images, blocks = resolve(group_name), srcs[0].shape[1], iter(kept)
    totals: list[Tensor | None] = [None] * len(srcs)
    of_srcs: list[Pending | None] = [None] * len(srcs)
    of_picks: list[Pending | None] = [None] * len(trgs)
    grad_trgs: list[Tensor | None] = []
    with torch.no_grad(), torch.autocast(srcs[0].device.type, enabled=False):
        upstream, of_mean_sq = _gather_upstream(
            local, group, grad_loss, grad_log_prob, grad_mean_sq
        )
        upstreams = _split(upstream, call.shapes)
        poses, negs = _split(all_pos, call.shapes), _split(all_neg, _sum_shapes(call))
        for index, part in enumerate(call.groups()):
            origin, place = local.pick_from[index], src_of[index]
            need_pick = origin != NO_PICK and need_trgs[origin]
            grad_src, grad_trg = call.implementation.backward(
                part,
                [next(blocks) for _ in call.kept_shapes(index)],
                poses[index],
                negs[index],
                upstreams[index],
                of_mean_sq[index],
                need_src=need_srcs[place] or need_pick,
                need_trg=need_trgs[index],
                image_offset=-group.rank() * images,
            )
            grad_trgs.append(grad_trg)
            if need_pick:
                of_picks[index] = start_exchange(split_rows(grad_src[-1:], group.size()), group)
            if need_srcs[place]:
                given, total = grad_src[: srcs[place].shape[0]], totals[place]
                totals[place] = given if total is None else total + given
                if place not in src_of[index + 1 :]:
                    parts = split_rows(totals[place], group.size())
                    of_srcs[place] = start_exchange(parts, group)
        local.add_picked([_sum(pending) for pending in of_picks], grad_trgs)
        grad_srcs = [_sum(pending) for pending in of_srcs]
    wanted = [
        grad.to(src.dtype) for grad, src in zip(grad_srcs, srcs, strict=True) if grad is not None
    ]
    return wanted + [grad for grad in grad_trgs if grad is not None]


def _sum(pending: Pending | None) -> Tensor | None:
    """Sum over the ranks of what they sent, in their order."""
    return None if pending is None else pending.wait().sum(dim=0)


def _gather_upstream(
    local: Call, group: Any, grad_loss: Tensor | None, *grads: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Upstream of the log_prob of all rows, flat, and of the mean_sq of this rank's targets."""
    src, sizes = local.srcs[0], (local.score_sizes, local.sets)
    grad_log_prob, grad_mean_sq = (
        src.new_zeros(sum(size), dtype=local.dtype) if grad is None else grad
        for grad, size in zip(grads, sizes, strict=True)
    )
    own = grad_log_prob.split(local.score_sizes)
    of_loss = [None] * len(own) if grad_loss is None else grad_loss.split(local.sets)
    total = [
        local.total_grad_log_prob(index, of_loss[index], part) for index, part in enumerate(own)
    ]
    flat = torch.cat([part.flatten() for part in total if part is not None])
    everyone = start_gather(torch.cat([flat, grad_mean_sq]), group).wait()
    of_log_prob, of_mean_sq = everyone.split([len(flat), len(grad_mean_sq)], dim=1)
    # The mean over all targets is the mean of the ranks' means, and each is upstream of each rank.
    return _join_groups(of_log_prob, local.shapes), of_mean_sq.mean(dim=0).split(local.sets)


def _backward_fake(srcs: list[Tensor], trgs: list[Tensor], *rest: Any) -> list[Tensor]:
    needed = zip((*srcs, *trgs), (*rest[-2], *rest[-1]), strict=True)
    return [tensor.new_empty(tensor.shape) for tensor, need in needed if need]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    srcs, trgs, picks, *settings, _, group_name = inputs
    *_, pos, all_pos, all_neg, all_srcs, kept = output
    ctx.settings = *settings, group_name
    ctx.counts = len(srcs), len(trgs), len(picks), len(all_srcs), len(kept)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(pos, all_pos, all_neg, *all_srcs, *kept)
    ctx.save_for_backward(all_pos, all_neg, *srcs, *trgs, *picks, *all_srcs, *kept)


def _autograd(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    all_pos, all_neg, *rest = ctx.saved_tensors
    srcs, trgs, picks, all_srcs, kept = (
        [rest.pop(0) for _ in range(count)] for count in ctx.counts
    )
    need_srcs, need_trgs = (list(need) for need in ctx.needs_input_grad[:2])
    saved = srcs, trgs, picks, all_pos, all_neg, all_srcs, kept
    found = iter(
        torch.ops.amdim_fast.nce_group_backward(
            *saved, *grads[:3], *ctx.settings, need_srcs, need_trgs
        )
    )
    grad_srcs = [next(found) if need else None for need in need_srcs]
    grad_trgs = [next(found) if need else None for need in need_trgs]
    # One None each for needs and for the settings.
    return grad_srcs, grad_trgs, [None] * len(picks), *[None] * (len(ctx.settings) + 1)


def _no_double_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError("nce_log_prob: a second derivative is not supported with a group")


for _name, _kernel, _fake in (
    ("nce_group_forward", _forward, _forward_fake),
    ("nce_group_backward", _backward, _backward_fake),
):
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"amdim_fast::{_name}", _fake, lib=LIBRARY)
torch.library.register_autograd(
    "amdim_fast::nce_group_forward", _autograd, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd("amdim_fast::nce_group_backward", _no_double_backward, lib=LIBRARY)
