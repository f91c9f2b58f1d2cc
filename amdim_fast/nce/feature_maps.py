"""Feature maps as the losses take them: shapes, checks and drawn locations."""

from __future__ import annotations

import torch
from torch import Tensor

from amdim_fast.nce.functional import check_features


def flatten_global(name: str, features: Tensor) -> Tensor:
    """[B, D, 1, 1] or [B, D] -> [B, D]."""
    if features.dim() not in (2, 4) or features.shape[2:].numel() != 1:
        raise ValueError(
            f"{name} has shape {list(features.shape)}; it must be [B, D, 1, 1] or [B, D]"
        )
    return features.flatten(1)


def flatten_local(name: str, feature_map: Tensor) -> Tensor:
    """[B, D, h, w] -> [B, h*w, D], a view of a channels_last map."""
    if feature_map.dim() != 4:
        raise ValueError(f"{name} has shape {list(feature_map.shape)}; it must be [B, D, h, w]")
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def check_pair(src_name: str, src: Tensor, trg_name: str, trg: Tensor) -> None:
    """``check_features`` with the names that the caller gave its sources and targets."""
    try:
        check_features(src, trg)
    except (ValueError, TypeError) as error:
        message = str(error).replace("trg[b] is the positive of src[b]", "row b is image b in both")
        message = message.replace("trg", trg_name).replace("src", src_name)
        raise type(error)(message) from None


def draw_locations(
    trg: Tensor, generator: torch.Generator | None, *, rank: int = 0, world_size: int = 1
) -> Tensor:
    """One location an image of trg [B, L, D], uniform: int64 [B].

    With several ranks, whose generators are alike, all draw for the whole batch, of which trg is
    the part of ``rank``: a location does not depend on the number of ranks.
    """
    if generator is not None and generator.device.type != trg.device.type:
        raise ValueError(
            f"generator is on {generator.device}; it must be on the features' device, {trg.device}"
        )
    images, locations = trg.shape[:2]
    batch = (world_size * images,)
    drawn = torch.randint(0, locations, batch, generator=generator, device=trg.device)
    return drawn[rank * images : (rank + 1) * images]


def check_locations(name: str, location: Tensor, trg: Tensor) -> None:
    """Raise unless ``location`` has one int64 an image of trg [B, L, D], on its device."""
    images = trg.shape[0]
    if location.dtype != torch.int64:
        raise TypeError(f"{name} is {location.dtype}; it must be int64")
    if location.shape != (images,):
        raise ValueError(f"{name} has shape {list(location.shape)}; it must be [{images}]")
    if location.device != trg.device:
        raise ValueError(f"{name} is on {location.device}; it must be on {trg.device}")
