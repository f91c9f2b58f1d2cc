"""A call of one pairing: its arguments, checked, and as the op takes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from amdim_fast.distributed.agreement import ErrorsOnAllRanks
from amdim_fast.nce import op
from amdim_fast.nce.candidates import positives_first
from amdim_fast.nce.clip import clip_value
from amdim_fast.nce.feature_maps import as_targets
from amdim_fast.nce.inputs import (
    NEGATIVES,
    REDUCTIONS,
    check_features,
    check_options,
    group_name,
    of_one_dtype,
)
from amdim_fast.nce.scale import scaled


def results_of(
    src: Tensor, trg: Tensor, group: ProcessGroup | None, **options: Any
) -> tuple[op.Outputs, int]:
    """The results of a call of the op, and L."""
    name = group_name(group)
    with ErrorsOnAllRanks(name):
        src, trg, settings = prepared(src, trg, **options)
    weights = op.Weights(1, 1.0, 1.0)
    return op.nce_forward([src], [trg], settings, weights, group_name=name), trg.shape[1]


def prepared(
    src: Tensor,
    trg: Tensor,
    *,
    clip: float | None,
    negatives: str,
    scale: float | Tensor | None,
    positive: Tensor | None,
    backend: str,
    precision: str,
    memory_budget: int | None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor, op.Settings]:
    """Checked sources [S, B, D] and targets [N, L, D] as the op takes them, and its settings."""
    src, trg = of_one_dtype((src, trg))
    if isinstance(trg, Tensor) and trg.dim() != 3:
        trg = as_targets(src, trg)
    check_features(src, trg, more_targets=True)
    check_options(clip, "clip", backend, precision, memory_budget)
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives is {negatives!r}; it must be one of {', '.join(NEGATIVES)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(REDUCTIONS)}")
    if scale is not None:
        src = scaled(src, scale)
    if positive is not None:
        trg = positives_first(trg, positive, src.shape[-2])
    settings = op.Settings(
        clip=clip_value(clip),
        same_location=negatives == "same_location",
        backend=backend,
        precision=precision,
        memory_budget=memory_budget,
    )
    return src if src.dim() == 3 else src[None], trg, settings
