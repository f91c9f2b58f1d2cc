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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from amdim_fast.distributed.agreement import ErrorsOnAllRanks, agree, resolve
from amdim_fast.distributed.collectives import (
    Pending,
    join_rows,
    split_rows,
    start_exchange,
    start_gather,
)
from amdim_fast.nce import algorithm
from amdim_fast.nce.algorithm import SourceGradient
from amdim_fast.nce.feature_maps import features_at
from amdim_fast.nce.kept import handed_on, received
from amdim_fast.nce.layout import Layout
from amdim_fast.nce.op_inputs import Gradients, Inputs, new_gradients
from amdim_fast.nce.pairing import Pairing, Results, Upstream
from amdim_fast.nce.plan import record_plan
from amdim_fast.nce.scratch import Scratch
from amdim_fast.nce.torch_passes import finish_sources, log_probability, totals_of
from amdim_fast.nce.wiring import NO_ORIGIN


class _Rows(NamedTuple):
    """The order of all ranks' rows: that of the ranks, or from the next rank to this one.

    The latter where there are more targets than sources: with this rank's rows last, the own image
    of every other row would lie before the first target, so it has none here.
    """

    rank: int
    world: int
    images: int
    own_last: bool

    @property
    def first(self) -> int:
        """Of this rank's rows."""
        return self.images * (self.world - 1 if self.own_last else self.rank)

    def join(self, parts: Tensor) -> Tensor:
        """[W, S, B, X] of the ranks -> [S, W * B, X]."""
        return join_rows(parts.roll(-self.rank - 1, 0) if self.own_last else parts)

    def split(self, rows: Tensor) -> Tensor:
        """[S, W * B, X] -> [W, S, B, X] of the ranks."""
        parts = split_rows(rows, self.world)
        return parts.roll(self.rank + 1, 0) if self.own_last else parts


def _rows(inputs: Inputs, group: ProcessGroup) -> _Rows:
    images = inputs.srcs[0].shape[1]
    own_last = any(trg.shape[0] > images for trg in inputs.trgs)
    return _Rows(group.rank(), group.size(), images, own_last)


def forward(
    inputs: Inputs, needs: Sequence[bool], group_name: str, keep: int | None
) -> tuple[Any, ...]:
    """What ``nce_forward`` returns; mean_sq is over all pairs of all ranks and equal on each."""
    group = resolve(group_name)
    with ErrorsOnAllRanks(group_name):
        layout = inputs.layout(one_pass=False, needs=needs, world_size=group.size(), keep=keep)
        sent = [*inputs.srcs, *_drawn_sources(inputs)]
    src = inputs.srcs[0]
    settings = inputs.pick_from, inputs.clip, inputs.same_location, inputs.src_of, list(needs)
    rows = _rows(inputs, group)
    shapes = [(shape.sets, shape.targets - rows.images, shape.locations) for shape in layout.shapes]
    agree(group_name, rows.images, (src.device.type, shapes, src.shape[-1], src.dtype, settings))

    all_srcs = [rows.join(start_gather(part, group).wait()).contiguous() for part in sent]
    results = layout.new_results(src)
    own = slice(rows.first, rows.first + rows.images)
    scores, exchanges, squares, kept = [], [], [], []
    for pairing in _pairings(inputs, layout, all_srcs, rows):
        kept.append(algorithm.forward(layout.passes, pairing, results))
        by_set = pairing.shape.sets, pairing.shape.images, -1
        neg = pairing.sums(results.neg).view(by_set)
        exchanges.append(start_exchange(rows.split(neg), group))
        scores.append(pairing.own(results.score).view(by_set)[:, own])
        squares.append(pairing.rows(results.row_square).view(by_set[:2]).sum(1))
    negs = [torch.logsumexp(exchange.wait(), dim=0) for exchange in exchanges]
    log_probs = [log_probability(score, neg) for score, neg in zip(scores, negs, strict=True)]
    losses = [-log_prob.mean(dim=(1, 2)) for log_prob in log_probs]
    loss, log_prob, mean_sq, score, neg = (
        torch.cat([part.flatten() for part in parts])
        for parts in (losses, log_probs, squares, scores, negs)
    )
    everyone = start_gather(torch.cat([score, neg, mean_sq]), group).wait()
    of_score, of_neg, of_mean_sq = everyone.split([len(score), len(neg), len(mean_sq)], dim=1)
    mean_sq = of_mean_sq.mean(dim=0)
    all_scores = _join_pairings(of_score, [(*part.shape,) for part in scores], rows)
    all_negs = _join_pairings(of_neg, [(*part.shape,) for part in negs], rows)
    record_plan(layout.plan)
    totals = totals_of(loss, mean_sq, layout.options)
    saved = [all_scores, all_negs, results.row_square, *all_srcs]
    if any(needs):
        saved += handed_on(kept, keep, results.score)
    return totals, loss, log_prob, mean_sq, score, saved


def backward(
    inputs: Inputs,
    needs: Sequence[bool],
    group_name: str,
    saved: Sequence[Tensor],
    upstream: Upstream,
    keep: int | None,
) -> list[Tensor]:
    """Gradients of the needed ones of this rank's sources and targets, in order."""
    group = resolve(group_name)
    rows = _rows(inputs, group)
    layout = inputs.layout(one_pass=False, needs=needs, world_size=group.size(), keep=keep)
    _, all_scores, all_negs, row_square, *rest = saved  # first the own score of this rank
    count = len(inputs.srcs) + len(inputs.picks)
    all_srcs, kept = rest[:count], received(layout, rest[count:], keep)
    results = Results(all_scores, all_scores, all_negs, row_square, row_square)
    gathered = _gather_upstream(inputs, layout, upstream, group)
    gradients = new_gradients(inputs, needs)
    last_of = {place: index for index, place in enumerate(inputs.src_of)}
    totals: dict[int, Tensor] = {}
    of_srcs: dict[int, Pending] = {}
    of_drawn: dict[int, Pending] = {}
    for index, pairing in enumerate(_pairings(inputs, layout, all_srcs, rows)):
        place = inputs.src_of[index]
        found = None
        if layout.wiring.needs_src(index):
            found = results.score.new_empty((pairing.shape.rows, pairing.shape.width))
        algorithm.backward(
            layout.passes,
            pairing,
            results,
            gathered,
            kept[index],
            grad_src=None if found is None else SourceGradient(found),
            grad_trg=gradients.trgs[index],
        )
        if found is None:
            continue
        by_set = found.view(pairing.shape.sets, pairing.shape.images, -1)
        if layout.wiring.needs_drawn(index):
            of_drawn[index] = start_exchange(rows.split(by_set[-1:]), group)
        if needs[place]:
            given = by_set[: len(inputs.srcs[place])]
            totals[place] = totals[place] + given if place in totals else given
            if last_of[place] == index:
                of_srcs[place] = start_exchange(rows.split(totals[place]), group)
    _finish(inputs, gradients, of_srcs, of_drawn)
    return gradients.wanted()


def _finish(
    inputs: Inputs,
    gradients: Gradients,
    of_srcs: dict[int, Pending],
    of_drawn: dict[int, Pending],
) -> None:
    """Sum what the ranks sent, in rank order, and put it in its place."""
    for index, pending in of_drawn.items():
        _, picks = inputs.drawn(index)
        part = pending.wait().sum(dim=0)[0]
        finish_sources(part, None, gradients.trgs[inputs.pick_from[index]], picks)
    for place, pending in of_srcs.items():
        out = gradients.srcs[place]
        assert out is not None
        out.copy_(pending.wait().sum(dim=0))


def _drawn_sources(inputs: Inputs) -> list[Tensor]:
    """[1, B, D] drawn sources of the pairings that have some."""
    found = []
    for index, origin in enumerate(inputs.pick_from):
        trg, picks = inputs.drawn(index)
        if origin != NO_ORIGIN and trg is not None and picks is not None:
            found.append(features_at(trg, picks)[None])
    return found


def _pairings(
    inputs: Inputs, layout: Layout, all_srcs: Sequence[Tensor], rows: _Rows
) -> list[Pairing]:
    """Sources of all ranks, the drawn ones last in ``all_srcs``, against this rank's targets."""
    drawn, scratch = iter(all_srcs[len(inputs.srcs) :]), Scratch(layout.dtype)
    found = []
    for index, (place, origin) in enumerate(zip(inputs.src_of, inputs.pick_from, strict=True)):
        src = all_srcs[place]
        if origin != NO_ORIGIN:
            src = torch.cat([src, next(drawn)])
        stacked = layout.passes.stack(src, None, None)
        found.append(layout.pairing(index, stacked, inputs.trgs[index], scratch, -rows.first))
    return found


def _join_pairings(parts: Tensor, shapes: Sequence[tuple[int, ...]], rows: _Rows) -> Tensor:
    """[W, sum of S * B * X] of the ranks -> flat [S, W * B, X], pairing after pairing."""
    split = parts.split([torch.Size(shape).numel() for shape in shapes], dim=1)
    joined = [
        rows.join(part.reshape(-1, *shape)).flatten()
        for part, shape in zip(split, shapes, strict=True)
    ]
    return torch.cat(joined)


def _gather_upstream(
    inputs: Inputs, layout: Layout, upstream: Upstream, group: ProcessGroup
) -> Upstream:
    """Upstream of the log_prob of all ranks' rows, and of the mean_sq of each set."""
    options, rows = layout.options, _rows(inputs, group)
    shapes = [(shape.sets, rows.images, shape.locations) for shape in layout.shapes]
    src, sets = inputs.srcs[0], layout.sets
    of_loss = of_mean_sq = src.new_zeros(sets, dtype=layout.dtype)
    if upstream.totals is not None:
        of_loss = of_loss + options.loss_weight * upstream.totals[:-1].repeat(sets // options.parts)
        of_mean_sq = of_mean_sq + options.mean_sq_weight * upstream.totals[-1]
    if upstream.loss is not None:
        of_loss = of_loss + upstream.loss
    if upstream.mean_sq is not None:
        of_mean_sq = of_mean_sq + upstream.mean_sq
    flat = torch.cat(
        [
            (part / -(shape[1] * shape[2])).view(-1, 1, 1).expand(shape).flatten()
            for part, shape in zip(
                of_loss.split([shape[0] for shape in shapes]), shapes, strict=True
            )
        ]
    )
    if upstream.log_prob is not None:
        flat = flat + upstream.log_prob
    everyone = start_gather(torch.cat([flat, of_mean_sq]), group).wait()
    of_log_prob, of_square = everyone.split([len(flat), sets], dim=1)
    # Every rank's objective has the mean over all targets, which is the mean of the ranks' means.
    return Upstream(
        log_prob=_join_pairings(of_log_prob, shapes, rows), mean_sq=of_square.mean(dim=0)
    )
