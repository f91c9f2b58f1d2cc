"""Feature maps as the losses take them: shapes, checks, and one location per image of a map."""

from __future__ import annotations

import torch
from torch import Tensor

from amdim_fast.nce.inputs import check_features, check_tensor


def flatten_global(name: str, features: Tensor) -> Tensor:
    """[B, D, 1, 1] or [B, D] -> [B, D]."""
    check_tensor(name, features)
    if features.dim() not in (2, 4) or features.shape[2:].numel() != 1:
        raise ValueError(
            f"{name} has shape {list(features.shape)}; it must be [B, D, 1, 1] or [B, D]"
        )
    return features.flatten(1)


def flatten_local(name: str, feature_map: Tensor) -> Tensor:
    """[B, D, h, w], or a map of other dimensions -> [B, L, D], a view of a channels_last map."""
    check_tensor(name, feature_map)
    if feature_map.dim() < 3:
        raise ValueError(
            f"{name} has shape {list(feature_map.shape)}; it must be [B, D, h, w], or another map"
            " such as [B, D, t] or [B, D, t, h, w]"
        )
    return feature_map.flatten(2).transpose(1, 2)


def as_targets(src: Tensor, trg: Tensor) -> Tensor:
    """[B, D] -> [B, 1, D], and a map [B, D, h, w] or [B, D, t, h, w] -> [B, L, D]."""
    if trg.dim() == 2:
        return trg[:, None]
    if trg.dim() < 4:
        return trg
    if isinstance(src, Tensor) and src.dim() > 0 and trg.shape[1] != src.shape[-1]:
        raise ValueError(
            f"trg has shape {list(trg.shape)} and src {list(src.shape)}; the channels of a map,"
            " its second size, must be the last size D of src"
        )
    return flatten_local("trg", trg)


def check_pair(src_name: str, src: Tensor, trg_name: str, trg: Tensor) -> None:
    """``check_features`` with sentences that name the caller's own arguments."""
    try:
        check_features(src, trg)
    except (ValueError, TypeError) as error:
        message = str(error).replace("trg[b] is the positive of src[b]", "row b is image b in both")
        message = message.replace("trg", trg_name).replace("src", src_name)
        raise type(error)(message) from None


def draw_locations(
    trg: Tensor,
    generator: torch.Generator | None,
    *,
    count: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """``count`` locations per image of trg [B, L, D], uniform: int64 [count * B].

    With several ranks, trg is the part of ``rank``. Each rank draws for the whole batch, from
    generators in the same state, so that locations do not depend on the number of ranks.
    """
    if generator is not None and generator.device.type != trg.device.type:
        raise ValueError(
            f"generator is on {generator.device}; it must be on the features' device, {trg.device}"
        )
    images, n_locations = trg.shape[:2]
    batch = (count * world_size * images,)
    # torch refuses a symbolic size beside a generator, even None.
    if generator is None:
        drawn = torch.randint(0, n_locations, batch, device=trg.device)
    else:
        drawn = torch.randint(0, n_locations, batch, generator=generator, device=trg.device)
    return drawn if world_size == 1 else drawn[rank * images : (rank + 1) * images]


def features_at(trg: Tensor, locations: Tensor) -> Tensor:
    """[B, D] features of trg [B, L, D] at one location per image; locations is int64 [B]."""
    index = locations[:, None, None].expand(-1, 1, trg.shape[2])
    return trg.gather(1, index).squeeze(1)


def view_locations(
    locations: tuple[Tensor, Tensor] | None,
    maps: tuple[Tensor, Tensor],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The locations of the 5x5 sources of both views, checked; drawn if None.

    Args:
        locations: int64 [B] for each view, or None.
        maps: the 5x5 maps of both views, [B, L, D].
        generator: as in ``draw_locations``.
    """
    if locations is None:
        if maps[0].shape == maps[1].shape:
            # On CPUs the same values as from two draws.
            both = draw_locations(maps[0], generator, count=2)
            first, second = both.view(2, -1).unbind()
            locations = first, second
        else:
            locations = draw_locations(maps[0], generator), draw_locations(maps[1], generator)
    for index, trg in enumerate(maps):
        check_locations(f"locations[{index}]", locations[index], trg)
    return locations


def check_locations(name: str, locations: Tensor, trg: Tensor) -> None:
    """Raise unless ``locations`` has one int64 per image of trg [B, L, D], on its device."""
    images = trg.shape[0]
    if locations.dtype != torch.int64:
        raise TypeError(f"{name} is {locations.dtype}; it must be int64")
    if locations.shape != (images,):
        raise ValueError(f"{name} has shape {list(locations.shape)}; it must be [{images}]")
    if locations.device != trg.device:
        raise ValueError(f"{name} is on {locations.device}; it must be on {trg.device}")


def locations_inside(locations: Tensor, trg: Tensor) -> Tensor:
    """The locations, if they lie in trg [B, L, D]; on a GPU they are not looked at."""
    count = trg.shape[1]
    if locations.device.type == "cpu" and not ((locations >= 0) & (locations < count)).all():
        raise ValueError(
            f"locations has an entry outside 0..{count - 1}; each must be the index of a location"
        )
    return locations
