"""``amdim_fast::nce_forward`` and ``nce_backward``: schema, fake, autograd.

One call takes several pairings and packs what it returns into flat tensors, so that a whole loss is
one operator boundary. A pairing has sources [S, B, D] stacked against shared targets [B, L, D], and
may draw one more source set, one location per image, from the targets of another pairing.

The schemas say ``picks``, ``pick_from`` and ``pos`` for locations, origins and score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amdim_fast.nce.call import NO_ORIGIN, Call, Settings, log_prob_of, record
from amdim_fast.nce.group_op import nce_group_forward
from amdim_fast.nce.library import register, register_autograd

FORWARD_SCHEMA = (
    "(Tensor[] srcs, Tensor[] trgs, Tensor[] picks, int[] pick_from, float? clip,"
    " bool same_location, str backend, int memory_budget, bool with_grad)"
    " -> (Tensor loss, Tensor log_prob, Tensor mean_sq, Tensor pos, Tensor neg, Tensor[] kept)"
)
BACKWARD_SCHEMA = (
    "(Tensor[] srcs, Tensor[] trgs, Tensor[] picks, Tensor pos, Tensor neg,"
    " Tensor[] kept, Tensor? grad_loss, Tensor? grad_log_prob, Tensor? grad_mean_sq,"
    " int[] pick_from, float? clip,"
    " bool same_location, str backend, int memory_budget, bool[] need_srcs, bool[] need_trgs)"
    " -> Tensor[]"
)


def nce_forward(
    srcs: Sequence[Tensor],
    trgs: Sequence[Tensor],
    *,
    locations: Sequence[Tensor] = (),
    origins: Sequence[int] | None = None,
    clip: float | None,
    same_location: bool = False,
    backend: str,
    memory_budget: int,
    group_name: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Call the op on checked inputs.

    Args:
        srcs: [S, B, D] of each pairing.
        trgs: [B, L, D] of each pairing.
        locations: int64 [B] for each pairing with drawn sources: one location per image.
        origins: for each pairing, the pairing whose targets its drawn sources come from, or
            NO_ORIGIN; drawn sources are the pairing's last set.
        clip: bound on |score| in nats, or None.
        same_location: whether negatives are taken at the same location only.
        backend: "auto", "torch" or "triton"; "auto" is resolved by the tensors' device.
        memory_budget: byte limit for score-shaped buffers.
        group_name: process group whose other ranks' images are negatives too, or None.

    Returns:
        Flat tensors, pairing after pairing, S with the drawn set: loss [S] = -mean(log_prob),
        log_prob [S, B, L] and mean_sq [S], differentiable, and score [S, B, L].
    """
    origins = [NO_ORIGIN] * len(srcs) if origins is None else list(origins)
    settings = Settings(origins, clip, same_location, backend, memory_budget)
    if group_name is not None:
        return nce_group_forward(srcs, trgs, locations, settings, group_name)
    with_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (*srcs, *trgs))
    loss, log_prob, mean_sq, score, _, _ = torch.ops.amdim_fast.nce_forward(
        srcs, trgs, locations, *settings, with_grad
    )
    return loss, log_prob, mean_sq, score


def _call(
    srcs: list[Tensor],
    trgs: list[Tensor],
    locations: list[Tensor],
    origins: list[int],
    clip: float | None,
    same_location: bool,
    backend: str,
    memory_budget: int,
    with_grad: bool,
) -> Call:
    """The call of the forward's arguments."""
    settings = Settings(origins, clip, same_location, backend, memory_budget)
    return Call(srcs, trgs, locations, settings, with_grad=with_grad)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    call = _call(*arguments)
    with torch.no_grad(), torch.autocast(call.srcs[0].device.type, enabled=False):
        pairings = call.pairings()
        scores, negs, squares, kept = zip(
            *(call.implementation.forward(pairing) for pairing in pairings), strict=True
        )
        log_probs = [log_prob_of(score, neg) for score, neg in zip(scores, negs, strict=True)]
        losses = [-log_prob.mean(dim=(1, 2)) for log_prob in log_probs]
        loss, log_prob, mean_sq, score, neg = (
            torch.cat([part.flatten() for part in parts])
            for parts in (losses, log_probs, squares, scores, negs)
        )
    record(call, pairings)
    return loss, log_prob, mean_sq, score, neg, [block for blocks in kept for block in blocks]


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    call = _call(*arguments)
    src = call.srcs[0]
    sets, scores, sums = sum(call.sets), sum(call.score_sizes), sum(call.sum_sizes)
    loss, log_prob, mean_sq, score, neg = (
        src.new_empty(size, dtype=call.dtype) for size in (sets, scores, sets, scores, sums)
    )
    kept = [
        src.new_empty(shape, dtype=call.dtype)
        for index in range(len(call.shapes))
        for shape in call.kept_shapes(index)
    ]
    return loss, log_prob, mean_sq, score, neg, kept


def _backward(
    srcs: list[Tensor],
    trgs: list[Tensor],
    locations: list[Tensor],
    score: Tensor,
    neg: Tensor,
    kept: list[Tensor],
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_mean_sq: Tensor | None,
    origins: list[int],
    clip: float | None,
    same_location: bool,
    backend: str,
    memory_budget: int,
    need_srcs: list[bool],
    need_trgs: list[bool],
) -> list[Tensor]:
    settings = Settings(origins, clip, same_location, backend, memory_budget)
    call = Call(srcs, trgs, locations, settings, with_grad=True)
    scores, negs = score.split(call.score_sizes), neg.split(call.sum_sizes)
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
        for index, pairing in enumerate(call.pairings()):
            origin = origins[index]
            grad_src, grad_trg = call.implementation.backward(
                pairing,
                [next(blocks) for _ in call.kept_shapes(index)],
                scores[index].view(call.shapes[index]),
                negs[index].view(call.sum_shapes[index]),
                call.total_grad_log_prob(index, of_loss[index], of_log_prob[index]),
                of_mean_sq[index],
                need_src=need_srcs[index] or (origin != NO_ORIGIN and need_trgs[origin]),
                need_trg=need_trgs[index],
            )
            grad_srcs.append(grad_src)
            grad_trgs.append(grad_trg)
        call.add_drawn(grad_srcs, grad_trgs)
    wanted = [
        grad[: src.shape[0]].to(src.dtype)
        for grad, src, need in zip(grad_srcs, srcs, need_srcs, strict=True)
        if need and grad is not None
    ]
    return wanted + [grad for grad in grad_trgs if grad is not None]


def _backward_fake(srcs: list[Tensor], trgs: list[Tensor], *rest: Any) -> list[Tensor]:
    *_, need_srcs, need_trgs = rest
    needed = zip((*srcs, *trgs), (*need_srcs, *need_trgs), strict=True)
    return [tensor.new_empty(tensor.shape) for tensor, need in needed if need]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    srcs, trgs, locations, *settings, _with_grad = inputs
    _loss, _log_prob, _mean_sq, score, neg, kept = output
    ctx.settings = Settings(*settings)
    ctx.counts = len(srcs), len(trgs), len(locations), len(kept)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(score, neg, *kept)
    ctx.save_for_backward(score, neg, *srcs, *trgs, *locations, *kept)


def _autograd(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    grad_loss, grad_log_prob, grad_mean_sq, *_ = grads
    score, neg, *saved = ctx.saved_tensors
    srcs, trgs, locations, kept = ([saved.pop(0) for _ in range(count)] for count in ctx.counts)
    need_srcs, need_trgs = (list(need) for need in ctx.needs_input_grad[:2])
    found = iter(
        torch.ops.amdim_fast.nce_backward(
            srcs,
            trgs,
            locations,
            score,
            neg,
            kept,
            grad_loss,
            grad_log_prob,
            grad_mean_sq,
            *ctx.settings,
            need_srcs,
            need_trgs,
        )
    )
    grad_srcs = [next(found) if need else None for need in need_srcs]
    grad_trgs = [next(found) if need else None for need in need_trgs]
    # One None each for the settings and with_grad.
    return grad_srcs, grad_trgs, [None] * len(locations), *[None] * (len(ctx.settings) + 1)


def _no_double_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(
        "nce_log_prob: a second derivative is not supported; on small inputs"
        " amdim_fast.nce.reference.nce_log_prob has one"
    )


register("nce_forward", FORWARD_SCHEMA, _forward, _forward_fake)
register("nce_backward", BACKWARD_SCHEMA, _backward, _backward_fake)
register_autograd("nce_forward", _autograd, _setup_context)
register_autograd("nce_backward", _no_double_backward)
