"""What a run reports besides its log: baselines, the summary and versions."""

from __future__ import annotations

import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from amdim_fast.data.datasets import ImageData
from amdim_fast.evaluation.linear_probe import probe_encoder, probe_pixels
from amdim_fast.nce.plan import last_plan
from amdim_fast.training.step import Training
from amdim_fast.version import __version__


def measure_baselines(training: Training, data: ImageData, weights: str) -> dict[str, float]:
    """Accuracies of the linear probe on pixels and on the encoder before its first step.

    Args:
        training: at step 0.
        data: labeled.
        weights: what the encoder has: "random" or "initial" weights.
    """
    return {
        "accuracy_raw_pixels": probe_pixels(data, training.recipe.view_policy),
        f"accuracy_{weights}_weights": _probe(training, data),
    }


def summarize(
    training: Training, data: ImageData, *, baselines: dict[str, float], seconds: float
) -> dict[str, Any]:
    """Seconds, rate, peak memory and the loss's backend; with ``recipe.baselines``, accuracies."""
    recipe, plan = training.recipe, last_plan()
    accuracies = {}
    if recipe.baselines:
        accuracies = baselines | {"accuracy_pretrained": _probe(training, data)}
    return accuracies | {
        "train_seconds": seconds,
        "images_per_second": training.step * recipe.batch_size / seconds,
        "peak_memory_bytes": _peak_memory(training.device),
        "loss_backend": None if plan is None else f"{plan.backend} ({plan.products})",
    }


def versions() -> dict[str, str]:
    """The versions that a run's bits depend on."""
    return {
        "amdim_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _probe(training: Training, data: ImageData) -> float:
    return probe_encoder(training.model.encoder, data, training.recipe.view_policy)


def _peak_memory(device: torch.device) -> int:
    """Peak bytes: of the allocator on CUDA, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        # Linux's ru_maxrss is at least that of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
