"""More targets than sources: which ones are positives, and the order that the op takes them in."""

from __future__ import annotations

import torch
from torch import Tensor


def positives_first(trg: Tensor, positive: Tensor, images: int) -> Tensor:
    """Targets [N, L, D] with those at ``positive`` int64 [B] first, and then the others in order.

    The entries must differ. On a CPU and outside a graph that is looked at here; elsewhere by an
    assertion on the device, which no host waits for.
    """
    _check(positive, trg, images)
    places = torch.arange(trg.shape[0], device=trg.device)
    order = places.scatter(0, positive, places[:images] - images).argsort()
    each_once = (order[:images] == positive).all()
    message = "positive has an entry twice; each source must have a target of its own"
    if trg.device.type == "cpu" and not torch.compiler.is_compiling():
        if not each_once:
            raise ValueError(message)
    else:
        torch._assert_async(each_once, message)
    return trg.index_select(0, order)


def _check(positive: Tensor, trg: Tensor, images: int) -> None:
    if not isinstance(positive, Tensor):
        raise TypeError(f"positive is a {type(positive).__name__}; it must be a torch.Tensor")
    if positive.dtype != torch.int64:
        raise TypeError(f"positive is {positive.dtype}; it must be int64")
    if positive.shape != (images,):
        raise ValueError(
            f"positive has shape {list(positive.shape)}; it must be [{images}], a target for each"
            " image of src"
        )
    if positive.device != trg.device:
        raise ValueError(f"positive is on {positive.device}; it must be on {trg.device}")
    if trg.device.type == "cpu" and not torch.compiler.is_compiling():
        count = trg.shape[0]
        if not ((positive >= 0) & (positive < count)).all():
            raise ValueError(
                f"positive has an entry outside 0..{count - 1}; each must be the index of a target"
            )
