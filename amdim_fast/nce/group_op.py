"""``amdim_fast::nce_group_forward`` and ``nce_group_backward``: negatives from every rank.

``ranks`` has what ranks send each other and how they compute.

The schemas say ``picks``, ``pick_from`` and ``pos`` for locations, origins and score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amdim_fast.distributed.agreement import ErrorsOnAllRanks, agree, resolve
from amdim_fast.nce import ranks
from amdim_fast.nce.call import Call, Settings
from amdim_fast.nce.library import register, register_autograd

FORWARD_SCHEMA = (
    "(Tensor[] srcs, Tensor[] trgs, Tensor[] picks, int[] pick_from, float? clip,"
    " bool same_location, str backend, int memory_budget, int[] src_of, bool[] needs,"
    " str group_name)"
    " -> (Tensor loss, Tensor log_prob, Tensor mean_sq, Tensor pos,"
    " Tensor all_pos, Tensor all_neg, Tensor[] all_srcs, Tensor[] kept)"
)
BACKWARD_SCHEMA = (
    "(Tensor[] srcs, Tensor[] trgs, Tensor[] picks, Tensor all_pos,"
    " Tensor all_neg, Tensor[] all_srcs, Tensor[] kept, Tensor? grad_loss, Tensor? grad_log_prob,"
    " Tensor? grad_mean_sq, int[] pick_from, float? clip, bool same_location, str backend,"
    " int memory_budget, int[] src_of, str group_name, bool[] need_srcs, bool[] need_trgs)"
    " -> Tensor[]"
)


def nce_group_forward(
    srcs: Sequence[Tensor],
    trgs: Sequence[Tensor],
    locations: Sequence[Tensor],
    settings: Settings,
    group_name: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``nce_forward`` of this rank's rows with every rank's targets; arguments as there.

    mean_sq is over all pairs of all ranks and equal on every rank.
    """
    unique: list[Tensor] = []
    src_of = []
    for src in srcs:
        place = next((i for i, known in enumerate(unique) if known is src), len(unique))
        unique += [src] if place == len(unique) else []
        src_of.append(place)
    enabled = torch.is_grad_enabled()
    needs = [enabled and tensor.requires_grad for tensor in (*unique, *trgs)]
    loss, log_prob, mean_sq, score, *_ = torch.ops.amdim_fast.nce_group_forward(
        unique, trgs, locations, *settings, src_of, needs, group_name
    )
    return loss, log_prob, mean_sq, score


def _forward(
    srcs: list[Tensor],
    trgs: list[Tensor],
    locations: list[Tensor],
    origins: list[int],
    clip: float | None,
    same_location: bool,
    backend: str,
    memory_budget: int,
    src_of: list[int],
    needs: list[bool],
    group_name: str,
) -> tuple[Any, ...]:
    options = Settings(origins, clip, same_location, backend, memory_budget)
    with ErrorsOnAllRanks(group_name):
        own = [srcs[place] for place in src_of]
        local = Call(own, trgs, locations, options, with_grad=any(needs))
        sent = [*srcs, *(drawn for drawn in local.drawn_sources() if drawn is not None)]
    src = srcs[0]
    settings = origins, clip, same_location, src_of, needs
    signature = [(s, n_locations) for s, _, n_locations in local.shapes], src.shape[-1], src.dtype
    agree(group_name, src.shape[1], (src.device.type, signature, settings))

    return ranks.forward(local, sent, src_of, resolve(group_name))


def _forward_fake(
    srcs: list[Tensor],
    trgs: list[Tensor],
    locations: list[Tensor],
    origins: list[int],
    clip: float | None,
    same_location: bool,
    backend: str,
    memory_budget: int,
    src_of: list[int],
    needs: list[bool],
    group_name: str,
) -> tuple[Any, ...]:
    options = Settings(origins, clip, same_location, backend, memory_budget)
    own = [srcs[place] for place in src_of]
    local = Call(own, trgs, locations, options, with_grad=any(needs))
    world, (_, images, width) = resolve(group_name).size(), srcs[0].shape
    sets = [src.shape[0] for src in srcs] + [1] * len(locations)
    src = srcs[0]
    all_srcs = [src.new_empty((count, world * images, width)) for count in sets]
    call = local.of_all_ranks(ranks.stack_sources(local, src_of, all_srcs))
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
    locations: list[Tensor],
    all_scores: Tensor,
    all_negs: Tensor,
    all_srcs: list[Tensor],
    kept: list[Tensor],
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_mean_sq: Tensor | None,
    origins: list[int],
    clip: float | None,
    same_location: bool,
    backend: str,
    memory_budget: int,
    src_of: list[int],
    group_name: str,
    need_srcs: list[bool],
    need_trgs: list[bool],
) -> list[Tensor]:
    options = Settings(origins, clip, same_location, backend, memory_budget)
    own = [srcs[place] for place in src_of]
    local = Call(own, trgs, locations, options, with_grad=True)
    return ranks.backward(
        local,
        srcs,
        src_of,
        all_scores,
        all_negs,
        all_srcs,
        kept,
        grad_loss,
        grad_log_prob,
        grad_mean_sq,
        need_srcs=need_srcs,
        need_trgs=need_trgs,
        group=resolve(group_name),
    )


def _backward_fake(srcs: list[Tensor], trgs: list[Tensor], *rest: Any) -> list[Tensor]:
    *_, need_srcs, need_trgs = rest
    needed = zip((*srcs, *trgs), (*need_srcs, *need_trgs), strict=True)
    return [tensor.new_empty(tensor.shape) for tensor, need in needed if need]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    srcs, trgs, locations, *settings, src_of, _needs, group_name = inputs
    _loss, _log_prob, _mean_sq, score, all_scores, all_negs, all_srcs, kept = output
    ctx.settings, ctx.src_of, ctx.group_name = Settings(*settings), src_of, group_name
    ctx.counts = len(srcs), len(trgs), len(locations), len(all_srcs), len(kept)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(score, all_scores, all_negs, *all_srcs, *kept)
    ctx.save_for_backward(all_scores, all_negs, *srcs, *trgs, *locations, *all_srcs, *kept)


def _autograd(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    grad_loss, grad_log_prob, grad_mean_sq, *_ = grads
    all_scores, all_negs, *saved = ctx.saved_tensors
    srcs, trgs, locations, all_srcs, kept = (
        [saved.pop(0) for _ in range(count)] for count in ctx.counts
    )
    need_srcs, need_trgs = (list(need) for need in ctx.needs_input_grad[:2])
    found = iter(
        torch.ops.amdim_fast.nce_group_backward(
            srcs,
            trgs,
            locations,
            all_scores,
            all_negs,
            all_srcs,
            kept,
            grad_loss,
            grad_log_prob,
            grad_mean_sq,
            *ctx.settings,
            ctx.src_of,
            ctx.group_name,
            need_srcs,
            need_trgs,
        )
    )
    grad_srcs = [next(found) if need else None for need in need_srcs]
    grad_trgs = [next(found) if need else None for need in need_trgs]
    # One None each for the settings, src_of, needs and group_name.
    return grad_srcs, grad_trgs, [None] * len(locations), *[None] * (len(ctx.settings) + 3)


def _no_double_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError("nce_log_prob: a second derivative is not supported with a group")


register("nce_group_forward", FORWARD_SCHEMA, _forward, _forward_fake)
register("nce_group_backward", BACKWARD_SCHEMA, _backward, _backward_fake)
register_autograd("nce_group_forward", _autograd, _setup_context)
register_autograd("nce_group_backward", _no_double_backward)
