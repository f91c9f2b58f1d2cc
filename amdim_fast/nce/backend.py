"""Which code runs a call of the contrastive op: torch operations or the Triton kernels."""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch

OLDEST_CAPABILITY = (8, 0)


def resolve_backend(backend: str, dtype: torch.dtype, device: torch.device) -> str:
    """Backend that a call runs on, "torch" or "triton", from the choice of the user.

    "auto" is triton on CUDA, torch elsewhere and for float64. Where the kernels cannot run on a
    CUDA device, "auto" is torch, with one warning.

    Raises:
        ValueError: "triton" cannot run here. TypeError: "triton" was chosen for float64.
    """
    if backend == "torch" or (
        backend == "auto" and (device.type != "cuda" or dtype == torch.float64)
    ):
        return "torch"
    if dtype == torch.float64:
        raise TypeError(
            "src is torch.float64; with backend 'triton' it must be float32, float16 or bfloat16:"
            " use backend='torch'"
        )
    obstacle = _obstacle(device)
    if obstacle is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"backend is 'triton', but {obstacle}; use backend='torch' or 'auto'")
    _warn_once(f"backend 'auto' is 'torch' here: {obstacle}; backend='torch' avoids this warning")
    return "torch"


@functools.cache
def _warn_once(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _obstacle(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device, or None."""
    if not _is_installed("triton"):
        return "the package triton is not installed"
    if device.type == "cuda" and torch.version.hip is not None:
        return "this torch is built for ROCm and the kernels are tested on CUDA only"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= OLDEST_CAPABILITY:
            return None
        found, needed = (".".join(map(str, pair)) for pair in (capability, OLDEST_CAPABILITY))
        return f"{device} has compute capability {found} and the kernels need {needed} or later"
    # Reached only with backend="triton", so that triton is not loaded otherwise.
    from amdim_fast.kernels.nce_forward import INTERPRETED

    if INTERPRETED and device.type == "cpu":
        return None
    return (
        f"the tensors are on {device}; its kernels run on a GPU, or on the CPU in Triton's"
        " interpreter (set TRITON_INTERPRET=1 before triton is imported)"
    )
