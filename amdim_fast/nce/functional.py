"""The contrastive functions: ``nce_log_prob``, ``nce_loss`` and ``nce_objective``."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.distributed import ProcessGroup

from amdim_fast.nce import op
from amdim_fast.nce.call import prepared, results_of
from amdim_fast.nce.inputs import check_weight


class NCEOutput(NamedTuple):
    """Un-reduced result; the leading [S] is absent for a single source."""

    log_prob: Tensor  # [..., B, L] float32, differentiable
    score: Tensor  # [..., B, L] float32, clipped score of the own image, detached
    mean_sq: Tensor  # [...] float32, differentiable, unweighted


class NCEObjective(NamedTuple):
    """The objective and its parts; the leading [S] is absent for a single source."""

    objective: Tensor  # scalar, float32, differentiable
    loss: Tensor  # [...] float32, detached
    mean_sq: Tensor  # [...] float32, detached, unweighted


def nce_log_prob(
    src: Tensor,
    trg: Tensor,
    *,
    clip: float | None = 20.0,
    negatives: str = "other_images",
    scale: float | Tensor | None = None,
    positive: Tensor | None = None,
    backend: str = "auto",
    precision: str = "auto",
    memory_budget: int | None = None,
    group: ProcessGroup | None = None,
) -> NCEOutput:
    """Log-probability of each image's own locations against those of all other images.

    Equals ``amdim_fast.nce.reference.nce_log_prob`` without storing the [B, N, L] scores:

        raw[b,n,l] = <src[b], trg[n,l]> * scale,      s = clip * tanh(raw / clip)
        log_prob[b,l] = s[b,b,l] - log(exp s[b,b,l] + sum_{n != b, l'} exp s[b,n,l'])
        mean_sq = mean_{b,n,l} raw^2

    Args:
        src: [B, D], or [S, B, D] for S sources that share the targets; float32, float16, bfloat16
            or float64.
        trg: [B, L, D] local features, same dtype and device; trg[b] is the positive of src[b]. Or
            [B, D], for L = 1, or a map [B, D, h, w] or [B, D, t, h, w], whose L are all its places,
            row-major (one of [B, D, t] goes as ``trg.transpose(1, 2)``). A channels_last map, or
            the [B, L, D] view of one, is used without a copy. There may be N > B images: all after
            the first B, such as hard negatives or a queue, are negatives of every source.
        clip: bound on |s| in nats, 1e-6 or more; None, or 1e30 and more, leaves raw scores.
        negatives: "other_images", all their locations, or "same_location", only location l of them
            for log_prob[b,l] (the softmax of ST-DIM, DRIML and CPC).
        scale: of the products: a number, or a tensor without dimensions, which may be learned; None
            is 1 / sqrt(D). It multiplies the sources before the op, so half types round once more.
            For softmaxes over plain scores, such as CLIP's, pass ``clip=None`` too.
        positive: int64 [B]: trg[positive[b]] is the positive of src[b], and all other targets are
            its negatives; None is 0 to B - 1. Copies trg once. No entry may occur twice, which is
            asserted on the device on a GPU and in a graph.
        backend: "torch", for any device; "triton", fused kernels for GPUs of compute capability 8.0
            or later, not for float64; "auto", triton on CUDA, torch elsewhere and for float64. If
            the kernels cannot run on the GPU, "auto" warns once and uses torch.
            ``amdim_fast.last_plan()`` tells which ran.
        precision: of the products of float32 features. "auto" is torch's own setting,
            ``torch.backends.cuda.matmul.fp32_precision``; "limbs" splits them into float16 numbers,
            whose products run on tensor cores (``amdim_fast.nce.limbs``): as close as IEEE for sums
            of many like terms, but up to some times its error where few terms dominate, and lost
            digits where an entry is below 2**-16 of the largest of its row. Others ignore it.
        memory_budget: byte limit for score-shaped memory (sources x targets): blocks of scores and
            of their gradients, and scores kept from forward to backward. None is 256 MiB and, on a
            GPU, the bytes of the features if that is more. Scores that fit are kept, and the
            backward takes two matrix products; otherwise they are computed again, and it takes
            three. Blocks are never smaller than the smallest that are still fast, so 0 keeps
            nothing and works in those. ``amdim_fast.last_plan()`` tells what was done, and why.
        group: torch.distributed process group; the images of all its ranks form the batch, and all
            other images are negatives. Each rank passes its own images, equally many on each, and
            gets their log_prob and score, and the mean_sq of all pairs. Gradients are those of the
            sum of the ranks' objectives, so the average that DistributedDataParallel takes is the
            gradient of one process with the whole batch, if the objective is a mean over images.
            Sources are sent between ranks, targets are not (``amdim_fast.nce.ranks``). None is
            this process alone.

    Returns:
        NCEOutput(log_prob [..., B, L], score [..., B, L], mean_sq [...]); float32, and float64 for
        float64 inputs. With one target there are no negatives: log_prob and its gradient are 0.

    Raises:
        ValueError: shapes or devices disagree, a size is 0, an argument is out of range,
            ``backend="triton"`` cannot run here, or the ranks of a group call with different
            numbers of images, shapes, dtypes or options.
        TypeError: dtypes differ or are not floating point, or are float64 for "triton"; a tensor
            is not dense; an argument is of a wrong type.
        RuntimeError: a second derivative is taken, or one in forward mode (jvp, jacfwd, dual
            tensors).

    Under autocast, inputs of several types are brought to its type, as for a matrix product. Under
    torch.compile and torch.export a graph may have any batch size: its plan is made when it runs,
    and it keeps the scores of all pairings for its backward, or of none. torch.func's grad, vjp and
    jacrev work, and vmap makes one call after the other.

    Accumulates in float32 and is bitwise reproducible. Saves the inputs, the own scores, one
    log-sum per row, and the kept scores. With a group, saves the sources, own scores and log-sums
    of all ranks, and sums over ranks in rank order. An error on one rank is raised on all, with the
    sentence of the lowest failing rank, except while torch.compile traces; for this the host waits
    for three integers from each rank, sent between CPUs if the group allows it.

    Source: arXiv:1906.00910, section 3; unlike the public code it does not overflow for clips
    above 44.
    """
    outputs, locations = results_of(
        src,
        trg,
        group,
        clip=clip,
        negatives=negatives,
        scale=scale,
        positive=positive,
        backend=backend,
        precision=precision,
        memory_budget=memory_budget,
    )
    shape = (*src.shape[:-1], locations)
    return NCEOutput(
        outputs.log_prob.view(shape),
        outputs.score.view(shape),
        outputs.mean_sq.view(src.shape[:-2]),
    )


def nce_loss(
    src: Tensor,
    trg: Tensor,
    *,
    clip: float | None = 20.0,
    negatives: str = "other_images",
    scale: float | Tensor | None = None,
    positive: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str = "auto",
    memory_budget: int | None = None,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Negative mean of ``nce_log_prob`` over images and locations; the same arguments and errors.

    ``reduction`` is "mean"; "sum", over images and locations, with a group those of this rank; or
    "none", which is ``-log_prob``. The cross-entropy of CLIP and SimCLR, over scores that are not
    clipped, is ``clip=None`` with their scale.

    Returns:
        loss [...], or [..., B, L] for "none", and the unweighted mean_sq [...]; float32, and
        float64 for float64 inputs.
    """
    outputs, locations = results_of(
        src,
        trg,
        group,
        clip=clip,
        negatives=negatives,
        scale=scale,
        positive=positive,
        reduction=reduction,
        backend=backend,
        precision=precision,
        memory_budget=memory_budget,
    )
    shape = src.shape[:-2]
    if reduction == "none":
        loss = -outputs.log_prob.view(*src.shape[:-1], locations)
    elif reduction == "sum":
        loss = outputs.loss.view(shape) * (src.shape[-2] * locations)
    else:
        loss = outputs.loss.view(shape)
    return loss, outputs.mean_sq.view(shape)


def nce_objective(
    src: Tensor,
    trg: Tensor,
    *,
    mean_sq_weight: float,
    clip: float | None = 20.0,
    negatives: str = "other_images",
    scale: float | Tensor | None = None,
    positive: Tensor | None = None,
    backend: str = "auto",
    precision: str = "auto",
    memory_budget: int | None = None,
) -> NCEObjective:
    """The scalar that training minimizes, with its gradients from the same pass.

        objective = sum over S of (loss + mean_sq_weight * mean_sq)

    Equal to what ``nce_loss`` gives, for less: three matrix products, a chunk of source rows at a
    time, and nothing of the size of the scores from forward to backward. The
    gradients for an upstream of 1 are made in the forward; the backward multiplies them by the
    upstream on the device. A second backward of the same graph computes them again.

    Args:
        src: as in ``nce_log_prob``.
        trg: as in ``nce_log_prob``.
        mean_sq_weight: weight of each mean squared raw score; finite, 0 or more.
        clip: as in ``nce_log_prob``.
        negatives: as in ``nce_log_prob``.
        scale: as in ``nce_log_prob``.
        positive: as in ``nce_log_prob``.
        backend: as in ``nce_log_prob``.
        precision: as in ``nce_log_prob``.
        memory_budget: byte limit for a chunk of scores and for the float32 sums of gradients of
            bfloat16 targets that several chunks need. None is 256 MiB and, on a GPU, the bytes of
            the features if that is more. Where they do not fit, the smallest blocks that are still
            fast are taken, and scores are computed twice, four products, if that needs less.

    Returns:
        NCEObjective; float32, and float64 for float64 inputs. Only ``objective`` is differentiable.

    Raises:
        As ``nce_log_prob``.

    Bitwise reproducible. Holds the inputs and their gradients until the backward.
    """
    stacked, targets, settings = prepared(
        src,
        trg,
        clip=clip,
        negatives=negatives,
        scale=scale,
        positive=positive,
        backend=backend,
        precision=precision,
        memory_budget=memory_budget,
    )
    check_weight("mean_sq_weight", mean_sq_weight)
    weights = op.Weights(stacked.shape[0], 1.0, mean_sq_weight)
    found = op.nce_objective([stacked], [targets], settings, weights)
    shape = src.shape[:-2]
    return NCEObjective(found.objective, found.loss.view(shape), found.mean_sq.view(shape))
