"""The implementations of the contrastive ops, for every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from amdim_fast.nce import algorithm, ranks
from amdim_fast.nce.algorithm import SourceGradient
from amdim_fast.nce.backend import resolve_backend
from amdim_fast.nce.kept import handed_on, received
from amdim_fast.nce.layout import Layout, passes_of
from amdim_fast.nce.library import prepared
from amdim_fast.nce.op_inputs import (
    Gradients,
    Inputs,
    new_flat,
    new_gradients,
    read,
    split_flat,
)
from amdim_fast.nce.pairing import Pairing, Results, Upstream
from amdim_fast.nce.plan import FORWARD, record_plan
from amdim_fast.nce.scratch import Scratch


def _pairings(
    inputs: Inputs, layout: Layout, with_drawn: Sequence[Tensor] = ()
) -> tuple[list[Pairing], list[Tensor]]:
    """Every pairing with its stacked sources, and the stacks that have drawn ones.

    Args:
        inputs: of the op.
        layout: of the call.
        with_drawn: those stacks, if they are known.
    """
    stacks: dict[int, Tensor] = {}
    known, made, found, scratch = iter(with_drawn), [], [], Scratch(layout.dtype)
    for index, place in enumerate(inputs.src_of):
        stack = stacks.get(place)
        if layout.wiring.draws(index):
            stack = next(known, None)
            if stack is None:
                stack = layout.passes.stack(inputs.srcs[place], *inputs.drawn(index))
            made.append(stack)
        elif stack is None:
            stack = layout.passes.stack(inputs.srcs[place], None, None)
        stacks[place] = stack
        rows = layout.shapes[index].rows
        part = stack if stack.shape[0] == rows else stack[:rows]
        found.append(layout.pairing(index, part, inputs.trgs[index], scratch))
    return found, made


def forward(*arguments: Any) -> tuple[Any, ...]:
    """``nce_forward``."""
    inputs, (group_name, needs, keep, numbers) = read(arguments, 4)
    inputs = inputs.with_numbers(numbers)
    if group_name is not None:
        with prepared(inputs.srcs[0]):
            return ranks.forward(inputs, needs, group_name, keep)
    layout = inputs.layout(one_pass=False, needs=needs, keep=keep)
    with prepared(inputs.srcs[0]):
        results = layout.new_results(inputs.srcs[0])
        pairings, stacks = _pairings(inputs, layout)
        kept = [algorithm.forward(layout.passes, pairing, results) for pairing in pairings]
        loss, mean_sq, totals, _ = layout.passes.sum_rows(results, layout.options, layout.images)
    record_plan(layout.plan)
    saved = [results.neg, results.row_square, *stacks]
    if any(needs):
        saved += handed_on(kept, keep, results.score)
    return totals, loss, results.log_prob, mean_sq, results.score, saved


def backward(*arguments: Any) -> list[Tensor]:
    """``nce_backward``."""
    inputs, (group_name, needs, saved, *grads, keep, numbers) = read(arguments, 9)
    inputs = inputs.with_numbers(numbers)
    # Autograd's may be expanded.
    totals, loss, log_prob, mean_sq = (
        None if grad is None else grad.contiguous() for grad in grads
    )
    upstream = Upstream(log_prob=log_prob, loss=loss, mean_sq=mean_sq, totals=totals)
    if group_name is not None:
        with prepared(inputs.srcs[0]):
            return ranks.backward(inputs, needs, group_name, saved, upstream, keep)
    layout = inputs.layout(one_pass=False, needs=needs, keep=keep)
    gradients = new_gradients(inputs, needs)
    with prepared(inputs.srcs[0]):
        score, neg, row_square, *rest = saved
        results = Results(score, score, neg, row_square, row_square)
        pairings, stacks = _pairings(inputs, layout, rest[: len(inputs.picks)])
        kept = received(layout, rest[len(stacks) :], keep)
        parts = _source_gradients(layout, pairings, results)
        for index, pairing in enumerate(pairings):
            algorithm.backward(
                layout.passes,
                pairing,
                results,
                upstream,
                kept[index],
                grad_src=parts[index],
                grad_trg=gradients.trgs[index],
            )
        finish(inputs, layout, parts, gradients)
    return gradients.wanted()


def objective(*arguments: Any) -> tuple[Tensor, ...]:
    """``nce_objective``."""
    inputs, (needs, numbers) = read(arguments, 2)
    results, _ = objective_with_gradients(inputs.with_numbers(numbers), needs)
    return results


def objective_with_gradients(
    inputs: Inputs, needs: Sequence[bool]
) -> tuple[tuple[Tensor, ...], Gradients]:
    """What ``nce_objective`` returns, and the views of its gradients."""
    layout = inputs.layout(one_pass=True, needs=needs)
    flat = new_flat(inputs, needs)
    gradients = split_flat(inputs, needs, flat)
    with prepared(inputs.srcs[0]):
        results = layout.new_results(inputs.srcs[0])
        pairings, _ = _pairings(inputs, layout)
        parts = _source_gradients(layout, pairings, results)
        for index, pairing in enumerate(pairings):
            if pairing.plan.mode == FORWARD:
                algorithm.forward(layout.passes, pairing, results)
                continue
            algorithm.one_pass(
                layout.passes,
                pairing,
                results,
                grad_src=parts[index],
                grad_trg=gradients.trgs[index],
            )
        loss, mean_sq, totals, objective = layout.passes.sum_rows(
            results, layout.options, layout.images
        )
        finish(inputs, layout, parts, gradients)
    record_plan(layout.plan)
    return (objective, totals, loss, mean_sq, flat), gradients


def scale(gradients: Tensor, upstream: Tensor, backend: str) -> None:
    """``nce_scale_``."""
    with prepared(gradients):
        passes_of(resolve_backend(backend, gradients.dtype, gradients.device)).scale(
            gradients, upstream
        )


def _source_gradients(
    layout: Layout, pairings: Sequence[Pairing], results: Results
) -> list[SourceGradient | None]:
    """Room for each pairing's gradient of its stacked sources, None where it is not wanted."""
    found: list[SourceGradient | None] = []
    for index, pairing in enumerate(pairings):
        earlier = layout.wiring.shares(index)
        room = None if earlier is None else found[earlier]
        if not layout.wiring.needs_src(index):
            found.append(None)
        elif room is not None:
            found.append(SourceGradient(room.rows[: pairing.shape.rows], add=True))
        else:
            size = pairing.shape.rows, pairing.shape.width
            found.append(SourceGradient(results.score.new_empty(size)))
    return found


def finish(
    inputs: Inputs,
    layout: Layout,
    parts: Sequence[SourceGradient | None],
    gradients: Gradients,
) -> None:
    """Put the gradients of given sources in their place, and add those of drawn ones to theirs.

    Args:
        inputs: of the op.
        layout: of the call.
        parts: of the stacked sources of each pairing.
        gradients: those of targets are there; both are written.
    """
    for index, part in enumerate(parts):
        earlier = layout.wiring.joins(index)
        into = None if earlier is None else parts[earlier]
        if into is not None and part is not None:
            given = inputs.srcs[inputs.src_of[index]].shape[:2].numel()
            into.rows[:given].add_(part.rows[:given])
    for index, given, drawn in layout.finishes:
        part = parts[index]
        if part is not None:
            out = gradients.srcs[inputs.src_of[index]] if given else None
            trg = gradients.trgs[inputs.pick_from[index]] if drawn else None
            layout.passes.finish_sources(part.rows, out, trg, inputs.drawn(index)[1])
