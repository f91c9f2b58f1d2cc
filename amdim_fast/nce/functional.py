"""The contrastive functions: ``nce_log_prob`` and ``nce_loss``, and the checks of their input."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from amdim_fast.distributed.agreement import ErrorsOnAllRanks
from amdim_fast.nce import op as nce_op
from amdim_fast.nce.plan import DEFAULT_MEMORY_BUDGET

FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NEGATIVES = ("other_images", "same_location")
BACKENDS = ("auto", "torch", "triton")


class NCEOutput(NamedTuple):
    """Un-reduced result; the leading [S] is absent for a single source."""

    log_prob: Tensor  # [..., B, L] float32, differentiable
    score: Tensor  # [..., B, L] float32, clipped score of the own image, detached
    mean_sq: Tensor  # [...] float32, differentiable, un-weighted


def nce_log_prob(
    src: Tensor,
    trg: Tensor,
    *,
    clip: float | None = 20.0,
    negatives: str = "other_images",
    backend: str = "auto",
    memory_budget: int | None = None,
    group: ProcessGroup | None = None,
) -> NCEOutput:
    """Log-probability of each image's own locations against those of all other images.

    Equals ``reference.nce.nce_log_prob`` without storing the [B, N, L] scores:

        raw[b,n,l] = <src[b], trg[n,l]> / sqrt(D),    s = clip * tanh(raw / clip)
        log_prob[b,l] = s[b,b,l] - log(exp s[b,b,l] + sum_{n != b, l'} exp s[b,n,l'])
        mean_sq = mean_{b,n,l} raw^2

    Args:
        src: [B, D], or [S, B, D] for S sources that share the targets; float32, float16, bfloat16
            or float64.
        trg: [B, L, D] local features, same dtype and device; trg[b] is the positive of src[b]. The
            [B, L, D] view of a channels_last map is taken without a copy.
        clip: bound on |s| in nats; None leaves raw scores.
        negatives: "other_images", every location of them, or "same_location", only the location l
            of log_prob[b,l] (the softmax of ST-DIM, DRIML and CPC).
        backend: "torch", any device; "triton", fused kernels, on GPUs of compute capability 8.0 and
            later, not for float64; "auto", the second on CUDA, but for float64, and the first
            elsewhere. Where "auto" finds a GPU too old, or no triton, it warns once and takes the
            first. ``amdim_fast.last_plan()`` tells which ran.
        memory_budget: bytes for all that has a row a source and a column a target: blocks of
            scores and of their gradients, and scores kept from forward to backward. None is
            256 MiB; 0 keeps nothing and works one target image at a time. Scores that fit are kept
            and the backward costs two products; otherwise they are computed again and it costs
            three. ``amdim_fast.last_plan()`` tells which. For B in the tens of thousands on a GPU
            give more: each block adds to all of src's gradient, so few long blocks are faster.
        group: torch.distributed process group; the images of all its ranks are the batch, so all
            are negatives. Each rank gives its own images, as many as every other, and gets
            log_prob and score of them, and mean_sq over all pairs. Gradients are those of the sum
            of the ranks' objectives: what DistributedDataParallel averages is the gradient of one
            process with the whole batch, as long as the objective is a mean over images. Sources
            travel, targets do not (``ops.nce_group``). None is this process alone.

    Returns:
        NCEOutput(log_prob [..., B, L], score [..., B, L], mean_sq [...]); float32, and float64 for
        float64 inputs. With B = 1 there are no negatives: log_prob is 0 and so is its gradient.

    Raises:
        ValueError: shapes or devices disagree, a size is 0, an argument is out of range,
            ``backend="triton"`` cannot run here, or the ranks of a group call with different
            numbers of images, shapes, dtypes or options.
        TypeError: dtypes differ or are not floating point, or are float64 for "triton".
        RuntimeError: a second derivative is asked for.

    Accumulates in float32 and is bitwise reproducible. Saves the inputs, score, one log-sum a row,
    and the kept scores. With a group, saves the sources, scores and log-sums of all ranks; sums
    over ranks are in their order. An error on one rank is raised on all, with the sentence of the
    lowest failing rank, except while torch.compile traces; for this the host waits for three
    integers from each rank, on CPUs where the group has them.

    Source: arXiv:1906.00910, section 3; unlike the public code it does not overflow for clips
    above 44.
    """
    _, log_prob, mean_sq, score = _single_group(
        src, trg, clip, negatives, backend, memory_budget, group
    )
    shape = (*src.shape[:-1], trg.shape[1])
    return NCEOutput(log_prob.view(shape), score.view(shape), mean_sq.view(src.shape[:-2]))


def nce_loss(
    src: Tensor,
    trg: Tensor,
    *,
    clip: float | None = 20.0,
    negatives: str = "other_images",
    backend: str = "auto",
    memory_budget: int | None = None,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Negative mean of ``nce_log_prob`` over images and locations; the same arguments and errors.

    Returns:
        loss [...] and the un-weighted mean_sq [...]; float32, and float64 for float64 inputs.
    """
    loss, _, mean_sq, _ = _single_group(src, trg, clip, negatives, backend, memory_budget, group)
    return loss.view(src.shape[:-2]), mean_sq.view(src.shape[:-2])


def _single_group(
    src: Tensor,
    trg: Tensor,
    clip: float | None,
    negatives: str,
    backend: str,
    memory_budget: int | None,
    group: ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    name = group_name(group)
    with ErrorsOnAllRanks(name):
        check_features(src, trg)
        check_options(clip, "clip", backend, memory_budget)
        if negatives not in NEGATIVES:
            raise ValueError(
                f"negatives is {negatives!r}; it must be one of {', '.join(NEGATIVES)}"
            )
    return nce_op.nce_forward(
        [src if src.dim() == 3 else src[None]],
        [trg],
        clip=clip_value(clip),
        same_location=negatives == "same_location",
        backend=backend,
        memory_budget=budget_value(memory_budget),
        group_name=name,
    )


def budget_value(memory_budget: int | None) -> int:
    """The budget in bytes as the op takes it; None is the default."""
    return DEFAULT_MEMORY_BUDGET if memory_budget is None else memory_budget


def clip_value(clip: float | None) -> float | None:
    """The clip as the op takes it; an infinite one is none."""
    return None if clip is None or math.isinf(clip) else float(clip)


def group_name(group: ProcessGroup | None) -> str | None:
    """The group as the op takes it; loss modules keep this, which can be copied and saved."""
    if group is None:
        return None
    if not isinstance(group, ProcessGroup):
        raise TypeError(
            f"group is a {type(group).__name__}; it must be a torch.distributed.ProcessGroup that"
            " this process belongs to, or None"
        )
    return group.group_name


def check_features(src: Tensor, trg: Tensor) -> None:
    """Raise the error of ``nce_log_prob`` that fits the tensors, before anything is computed."""
    for name, tensor in (("src", src), ("trg", trg)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor")
        if tensor.dtype not in FEATURE_DTYPES:
            raise TypeError(
                f"{name} is {tensor.dtype}; it must be float32, float16, bfloat16 or float64"
            )
    if src.dim() not in (2, 3):
        raise ValueError(f"src has shape {_shape(src)}; it must be [B, D] or [S, B, D]")
    if trg.dim() != 3:
        raise ValueError(f"trg has shape {_shape(trg)}; it must be [B, L, D]")
    if src.dtype != trg.dtype:
        raise TypeError(f"trg is {trg.dtype} and src is {src.dtype}; they must have one dtype")
    if src.device != trg.device:
        raise ValueError(
            f"trg is on {trg.device} and src on {src.device}; they must share a device"
        )
    if src.shape[-1] != trg.shape[-1]:
        raise ValueError(
            f"trg has shape {_shape(trg)} and src {_shape(src)}; their last sizes D must agree"
        )
    if src.shape[-2] != trg.shape[0]:
        raise ValueError(
            f"trg has {trg.shape[0]} images and src {src.shape[-2]}; trg[b] is the positive of"
            " src[b], so their numbers B must agree"
        )
    for name, tensor in (("src", src), ("trg", trg)):
        if tensor.numel() == 0:
            raise ValueError(f"{name} has shape {_shape(tensor)}; every size must be at least 1")


def check_options(
    clip: float | None, clip_name: str, backend: str, memory_budget: int | None
) -> None:
    """Raise the error that fits the options shared by the functions and the loss modules."""
    if clip is not None and not clip > 0:
        raise ValueError(f"{clip_name} is {clip}; it must be greater than 0, or None for no clip")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    if memory_budget is not None and (
        isinstance(memory_budget, bool) or not isinstance(memory_budget, int)
    ):
        raise TypeError(
            f"memory_budget is a {type(memory_budget).__name__}; it must be a whole number of bytes"
        )
    if memory_budget is not None and memory_budget < 0:
        raise ValueError(f"memory_budget is {memory_budget}; it must be 0 bytes or more")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
