"""The contrastive op over the ranks of a process group: what they send, and what each computes.

Targets stay on their rank. A rank gathers the sources of all ranks, scores them against its own
targets and sends each rank the log-sums of that rank's rows; in the backward, the gradients of its
sources. The rest is local. With B images per rank and W ranks, each rank receives, for each
pairing, (W - 1) B times

    forward:   S D of sources, S M of log-sums twice, S L of own scores
    backward:  S L of upstream gradients, S D of gradients of sources

and a few scalars, where M is 1, or L for same_location. All but the sources have the dtype of the
scores. Sources that several pairings share are sent once, and so are their gradients. Targets, L D
per row, are never sent.

Gradients are those of the sum of all ranks' objectives, so the average that
DistributedDataParallel takes is the gradient of their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from amdim_fast.distributed.collectives import (
    Pending,
    join_rows,
    split_rows,
    start_exchange,
    start_gather,
)
from amdim_fast.nce.call import NO_ORIGIN, Call, log_prob_of, record

ForwardOutput = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]


def stack_sources(local: Call, src_of: Sequence[int], all_srcs: Sequence[Tensor]) -> list[Tensor]:
    """Stacked sources of each pairing, of all ranks; in all_srcs the drawn ones come last."""
    drawn = iter(all_srcs[len(all_srcs) - len(local.locations) :])
    return [
        all_srcs[place] if origin == NO_ORIGIN else torch.cat([all_srcs[place], next(drawn)])
        for place, origin in zip(src_of, local.origins, strict=True)
    ]


def forward(
    local: Call, sent: Sequence[Tensor], src_of: Sequence[int], group: ProcessGroup
) -> ForwardOutput:
    """What ``nce_group_forward`` returns.

    Args:
        local: the call of this rank alone.
        sent: its sources, each once, and then the drawn ones: [S, B, D] each.
        src_of: for each pairing, which of ``sent`` its given sources are.
        group: process group.
    """
    images, device = sent[0].shape[1], sent[0].device
    rank, world = group.rank(), group.size()
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        gathers = [start_gather(part, group) for part in sent]
        all_srcs = [join_rows(gather.wait()).contiguous() for gather in gathers]
        call = local.of_all_ranks(stack_sources(local, src_of, all_srcs))
        pairings = call.pairings()
        scores, exchanges, squares, kept = [], [], [], []
        for pairing in pairings:
            score, neg, mean_sq, blocks = call.implementation.forward(pairing, -rank * images)
            exchanges.append(start_exchange(split_rows(neg, world), group))
            scores.append(score[:, rank * images : (rank + 1) * images])
            squares.append(mean_sq)
            kept += blocks
        negs = [torch.logsumexp(exchange.wait(), dim=0) for exchange in exchanges]
        log_probs = [log_prob_of(score, neg) for score, neg in zip(scores, negs, strict=True)]
        losses = [-log_prob.mean(dim=(1, 2)) for log_prob in log_probs]
        loss, log_prob, mean_sq, score, neg = (
            torch.cat([part.flatten() for part in parts])
            for parts in (losses, log_probs, squares, scores, negs)
        )
        everyone = start_gather(torch.cat([score, neg, mean_sq]), group).wait()
        of_score, of_neg, of_mean_sq = everyone.split([len(score), len(neg), len(mean_sq)], dim=1)
        all_scores = _join_pairings(of_score, local.shapes)
        all_negs = _join_pairings(of_neg, local.sum_shapes)
    record(call, pairings)
    return loss, log_prob, of_mean_sq.mean(dim=0), score, all_scores, all_negs, all_srcs, kept


def backward(
    local: Call,
    srcs: Sequence[Tensor],
    src_of: Sequence[int],
    all_scores: Tensor,
    all_negs: Tensor,
    all_srcs: Sequence[Tensor],
    kept: Sequence[Tensor],
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_mean_sq: Tensor | None,
    *,
    need_srcs: Sequence[bool],
    need_trgs: Sequence[bool],
    group: ProcessGroup,
) -> list[Tensor]:
    """Gradients of the needed ones of ``srcs`` and of this rank's targets, in order."""
    call = local.of_all_ranks(stack_sources(local, src_of, all_srcs))
    images, blocks = srcs[0].shape[1], iter(kept)
    totals: list[Tensor | None] = [None] * len(srcs)
    of_srcs: list[Pending | None] = [None] * len(srcs)
    of_drawn: list[Pending | None] = [None] * len(local.trgs)
    grad_trgs: list[Tensor | None] = []
    with torch.no_grad(), torch.autocast(srcs[0].device.type, enabled=False):
        upstream, of_mean_sq = _gather_upstream(
            local, group, grad_loss, grad_log_prob, grad_mean_sq
        )
        upstreams = _split(upstream, call.shapes)
        scores, negs = _split(all_scores, call.shapes), _split(all_negs, call.sum_shapes)
        for index, pairing in enumerate(call.pairings()):
            origin, place = local.origins[index], src_of[index]
            need_drawn = origin != NO_ORIGIN and need_trgs[origin]
            grad_src, grad_trg = call.implementation.backward(
                pairing,
                [next(blocks) for _ in call.kept_shapes(index)],
                scores[index],
                negs[index],
                upstreams[index],
                of_mean_sq[index],
                need_src=need_srcs[place] or need_drawn,
                need_trg=need_trgs[index],
                image_offset=-group.rank() * images,
            )
            grad_trgs.append(grad_trg)
            if need_drawn:
                parts = split_rows(grad_src[-1:], group.size())
                of_drawn[index] = start_exchange(parts, group)
            if need_srcs[place]:
                given, before = grad_src[: srcs[place].shape[0]], totals[place]
                total = given if before is None else before + given
                totals[place] = total
                if place not in src_of[index + 1 :]:
                    of_srcs[place] = start_exchange(split_rows(total, group.size()), group)
        local.add_drawn([_sum(pending) for pending in of_drawn], grad_trgs)
        grad_srcs = [_sum(pending) for pending in of_srcs]
    wanted = [
        grad.to(src.dtype) for grad, src in zip(grad_srcs, srcs, strict=True) if grad is not None
    ]
    return wanted + [grad for grad in grad_trgs if grad is not None]


def _join_pairings(parts: Tensor, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
    """[W, sum of S * B * X] of the ranks -> flat [S, W * B, X], pairing after pairing."""
    split = parts.split([torch.Size(shape).numel() for shape in shapes], dim=1)
    joined = [
        join_rows(part.reshape(-1, *shape)).flatten()
        for part, shape in zip(split, shapes, strict=True)
    ]
    return torch.cat(joined)


def _sum(pending: Pending | None) -> Tensor | None:
    """Sum of what the ranks sent, in rank order."""
    return None if pending is None else pending.wait().sum(dim=0)


def _split(packed: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Tensors of these shapes, packed one after the other."""
    parts = packed.split([torch.Size(shape).numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _gather_upstream(
    local: Call,
    group: ProcessGroup,
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_mean_sq: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Upstream of the log_prob of all ranks' rows, flat, and of the mean_sq of each pairing."""
    src = local.srcs[0]
    if grad_log_prob is None:
        grad_log_prob = src.new_zeros(sum(local.score_sizes), dtype=local.dtype)
    if grad_mean_sq is None:
        grad_mean_sq = src.new_zeros(sum(local.sets), dtype=local.dtype)
    own = grad_log_prob.split(local.score_sizes)
    of_loss = [None] * len(own) if grad_loss is None else grad_loss.split(local.sets)
    total = [
        local.total_grad_log_prob(index, of_loss[index], part) for index, part in enumerate(own)
    ]
    flat = torch.cat([part.flatten() for part in total if part is not None])
    everyone = start_gather(torch.cat([flat, grad_mean_sq]), group).wait()
    of_log_prob, of_mean_sq = everyone.split([len(flat), len(grad_mean_sq)], dim=1)
    # Every rank's objective has the mean over all targets, which is the mean of the ranks' means.
    return _join_pairings(of_log_prob, local.shapes), of_mean_sq.mean(dim=0).split(local.sets)
