"""Which code runs a call of the contrastive op: torch operations or the Triton kernels."""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch

OLDEST_CAPABILITY = (8, 0)


def resolve_backend(backend: str, dtype: torch.dtype, device: torch.device) -> str:
    """'torch' or 'triton' for a backend as users name it.

    "auto" is "triton" on CUDA and "torch" elsewhere and for float64. Where the kernels cannot run
    on a CUDA device, "auto" is "torch" and says so in one warning.

    Raises:
        ValueError: "triton" is asked for where it cannot run. TypeError: for float64.
    """
    if backend == "torch" or (
        backend == "auto" and (device.type != "cuda" or dtype == torch.float64)
    ):
        return "torch"
    if dtype == torch.float64:
        raise TypeError(
            "src is torch.float64, which backend 'triton' does not compute; use backend='torch'"
        )
    obstacle = _obstacle(device)
    if obstacle is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"backend is 'triton', but {obstacle}; use backend='torch' or 'auto'")
    _warn_once(f"backend 'auto' is 'torch' here: {obstacle}; name backend='torch' to say so")
    return "torch"


@functools.cache
def _warn_once(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


def _obstacle(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cuda" and torch.version.hip is not None:
        return "this torch is built for ROCm and the kernels are proved for CUDA only"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= OLDEST_CAPABILITY:
            return None
        found, needed = (".".join(map(str, pair)) for pair in (capability, OLDEST_CAPABILITY))
        return f"{device} has compute capability {found} and the kernels need {needed} or later"
    # Only asked for by name, so triton is loaded by those who want it.
    from amdim_fast.kernels.nce_forward import INTERPRETED

    if INTERPRETED and device.type == "cpu":
        return None
    return (
        f"the tensors are on {device}; its kernels run on a GPU, or on the CPU in Triton's"
        " interpreter (TRITON_INTERPRET=1 before triton is imported)"
    )
