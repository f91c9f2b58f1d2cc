"""What a weight in a file must be before a model takes it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from amdim_fast.checkpoints.formats import CheckpointError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTER = "num_batches_tracked"
_BACKBONE = "encoder.network."


def check_weights(state: Mapping[str, Tensor], path: object) -> None:
    """Raise unless all tensors are dense, real, finite floating point, and stored whole.

    Counters of BatchNorm and buffers of a backbone may be integers or truth values.

    Raises:
        CheckpointError: names the first that is not, and says what it is.
    """
    for name, value in state.items():
        what = _fault(name, value)
        if what is not None:
            raise CheckpointError(f"{path} holds {name}, which {what}")


def _fault(name: str, value: Tensor) -> str | None:
    if value.is_meta:
        return "has no values (device meta); save the model from a real device"
    if value.is_nested or value.layout != torch.strided or value.is_quantized:
        kind = "quantized" if value.is_quantized else "sparse or nested"
        return f"is {kind}; save it as a dense tensor, such as after .dequantize() or .to_dense()"
    whole = name.endswith(_COUNTER) or name.startswith(_BACKBONE)
    if value.dtype not in _DTYPES and not (whole and not value.is_complex()):
        return f"is {value.dtype}; it must be float16, bfloat16, float32 or float64"
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return f"has shape {list(value.shape)} and fewer values; save a copy with .clone()"
    if not value.isfinite().all():
        return "has NaN or infinity, so that features would too; use an earlier file"
    return None
