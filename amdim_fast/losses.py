"""The AMDIM loss module.

Source: Bachman, Hjelm, Buchwalter 2019 (arXiv:1906.00910), section 3. The weight of the penalty is
5e-2 in the public code and 4e-2 in the paper; the clip is 20 in its training script and 10 as the
default of its class. Both are arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amdim_fast.functional import budget_value, check_features, check_options, clip_value
from amdim_fast.ops import nce as nce_op


class LossMultiNCE(nn.Module):
    """The six costs of AMDIM; takes the place of the public code's module of this name.

    Equals ``reference.nce.multiscale_nce``: r1 predicts the other view's 5x5 and 7x7 maps, and one
    location of r5, picked at random for each image, predicts the other view's 5x5 map; in both
    directions. Sources that share targets are stacked, so each map is read once.

    Args:
        tclip: bound on |score| in nats, or None.
        reg_weight: weight of each mean squared raw score, before the factor 0.5.
        group: None; negatives from other processes are not available yet.
        memory_budget: bytes for blocks of scores, as in ``nce_log_prob``.
        backend: as in ``nce_log_prob``.

    It has no parameters and no buffers, and works wherever its inputs are.
    """

    def __init__(
        self,
        tclip: float | None = 10.0,
        reg_weight: float = 5e-2,
        group: object | None = None,
        *,
        memory_budget: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_options(tclip, "tclip", backend, memory_budget, group)
        if not math.isfinite(reg_weight) or reg_weight < 0:
            raise ValueError(f"reg_weight is {reg_weight}; it must be a finite number, 0 or more")
        self.tclip = tclip
        self.reg_weight = reg_weight
        self.memory_budget = memory_budget
        self.backend = backend

    def extra_repr(self) -> str:
        """The arguments by which two losses differ."""
        return f"tclip={self.tclip}, reg_weight={self.reg_weight}, backend={self.backend!r}"

    def forward(
        self,
        r1_x1: Tensor,
        r5_x1: Tensor,
        r7_x1: Tensor,
        r1_x2: Tensor,
        r5_x2: Tensor,
        r7_x2: Tensor,
        *,
        locations: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Losses of two views of B images.

        Args:
            r1_x1: [B, D, 1, 1] or [B, D] global features of view 1.
            r5_x1: [B, D, 5, 5] local features of view 1; other map sizes work too.
            r7_x1: [B, D, 7, 7] local features of view 1; other map sizes work too.
            r1_x2: as r1_x1, of view 2.
            r5_x2: as r5_x1, of view 2.
            r7_x2: as r7_x1, of view 2.
            locations: (view 1, view 2), int64 [B] each: row-major location of the 5x5 source;
                drawn uniformly when None.
            generator: draws the locations, on the features' device. Without one, CPU features draw
                from the default generator what the public code draws.

        Returns:
            loss_1t5, loss_1t7, loss_5t5, lgt_reg: scalars, float32 (float64 for float64 inputs).
            Each loss is the mean of both directions, and lgt_reg = 0.5 * reg_weight * the sum of
            the six mean squared raw scores. The training objective is the sum of the four.

        Raises:
            ValueError: shapes, devices or locations do not fit. TypeError: dtypes differ.

        Channels_last maps are read where they are; others are copied once.
        """
        src_1, src_2 = _global("r1_x1", r1_x1), _global("r1_x2", r1_x2)
        r5_1, r5_2 = _local("r5_x1", r5_x1), _local("r5_x2", r5_x2)
        r7_1, r7_2 = _local("r7_x1", r7_x1), _local("r7_x2", r7_x2)
        maps = {"r5_x1": r5_1, "r7_x1": r7_1, "r1_x2": src_2[:, None], "r5_x2": r5_2, "r7_x2": r7_2}
        for name, feature_map in maps.items():
            _check_pair(name, feature_map, src_1)
        if locations is None:
            locations = _draw(r5_1, generator), _draw(r5_2, generator)
        for index, feature_map in enumerate((r5_1, r5_2)):
            _check_locations(f"locations[{index}]", locations[index], feature_map)

        # Of each direction: 1->5 and 5->5, which share targets, then 1->7.
        loss, _, mean_sq, _ = nce_op.nce_forward(
            [src_1[None], src_1[None], src_2[None], src_2[None]],
            [r5_2, r7_2, r5_1, r7_1],
            picks=locations,
            pick_from=[2, nce_op.NO_PICK, 0, nce_op.NO_PICK],
            clip=clip_value(self.tclip),
            backend=self.backend,
            memory_budget=budget_value(self.memory_budget),
        )
        loss_1t5, loss_5t5, loss_1t7 = (0.5 * (loss[:3] + loss[3:])).unbind()
        penalty_1t5, penalty_5t5, penalty_1t7 = (mean_sq[:3] + mean_sq[3:]).unbind()
        penalty = penalty_1t5 + penalty_5t5 + penalty_1t7
        return loss_1t5, loss_1t7, loss_5t5, 0.5 * self.reg_weight * penalty


def _global(name: str, features: Tensor) -> Tensor:
    """[B, D, 1, 1] or [B, D] -> [B, D]."""
    if features.dim() not in (2, 4) or features.shape[2:].numel() != 1:
        raise ValueError(
            f"{name} has shape {list(features.shape)}; it must be [B, D, 1, 1] or [B, D]"
        )
    return features.flatten(1)


def _local(name: str, feature_map: Tensor) -> Tensor:
    """[B, D, h, w] -> [B, h*w, D], a view of a channels_last map."""
    if feature_map.dim() != 4:
        raise ValueError(f"{name} has shape {list(feature_map.shape)}; it must be [B, D, h, w]")
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def _check_pair(name: str, trg: Tensor, src: Tensor) -> None:
    try:
        check_features(src, trg)
    except (ValueError, TypeError) as error:
        message = str(error).replace("trg[b] is the positive of src[b]", "row b is image b in both")
        message = message.replace("trg", name).replace("src", "r1_x1")
        raise type(error)(message) from None


def _draw(trg: Tensor, generator: torch.Generator | None) -> Tensor:
    """One location an image, int64 [B]."""
    if generator is not None and generator.device.type != trg.device.type:
        raise ValueError(
            f"generator is on {generator.device}; it must be on the features' device, {trg.device}"
        )
    return torch.randint(0, trg.shape[1], trg.shape[:1], generator=generator, device=trg.device)


def _check_locations(name: str, location: Tensor, trg: Tensor) -> None:
    images = trg.shape[0]
    if location.dtype != torch.int64:
        raise TypeError(f"{name} is {location.dtype}; it must be int64")
    if location.shape != (images,):
        raise ValueError(f"{name} has shape {list(location.shape)}; it must be [{images}]")
    if location.device != trg.device:
        raise ValueError(f"{name} is on {location.device}; it must be on {trg.device}")
