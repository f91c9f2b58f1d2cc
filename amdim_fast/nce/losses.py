"""The AMDIM loss module.

Source: Bachman, Hjelm, Buchwalter 2019 (arXiv:1906.00910), section 3. The weight of the penalty is
5e-2 in the public code and 4e-2 in the paper; the clip is 20 in its training script and 10 as the
default of its class. Both are arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from amdim_fast.distributed.agreement import ErrorsOnAllRanks
from amdim_fast.nce import op as nce_op
from amdim_fast.nce.feature_maps import (
    check_locations,
    check_pair,
    draw_locations,
    flatten_global,
    flatten_local,
)
from amdim_fast.nce.functional import budget_value, check_options, clip_value, group_name


class LossMultiNCE(nn.Module):
    """The six costs of AMDIM; takes the place of the public code's module of this name.

    Equals ``reference.nce.multiscale_nce``: r1 predicts the other view's 5x5 and 7x7 maps, and one
    location of r5, picked at random for each image, predicts the other view's 5x5 map; in both
    directions. Sources that share targets are stacked, so each map is read once.

    Args:
        tclip: bound on |score| in nats, or None.
        reg_weight: weight of each mean squared raw score, before the factor 0.5.
        group: as in ``nce_log_prob``: the images of all its ranks are negatives. Each loss is the
            mean over this rank's images, the penalty that of the whole batch. Kept by name.
        memory_budget: bytes for blocks of scores, as in ``nce_log_prob``.
        backend: as in ``nce_log_prob``.

    It has no parameters and no buffers, and works wherever its inputs are.
    """

    def __init__(
        self,
        tclip: float | None = 10.0,
        reg_weight: float = 5e-2,
        group: ProcessGroup | None = None,
        *,
        memory_budget: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_options(tclip, "tclip", backend, memory_budget)
        if not math.isfinite(reg_weight) or reg_weight < 0:
            raise ValueError(f"reg_weight is {reg_weight}; it must be a finite number, 0 or more")
        self.tclip = tclip
        self.reg_weight = reg_weight
        self.memory_budget = memory_budget
        self.group_name = group_name(group)
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
        with ErrorsOnAllRanks(self.group_name):
            src_1, src_2 = flatten_global("r1_x1", r1_x1), flatten_global("r1_x2", r1_x2)
            r5_1, r5_2 = flatten_local("r5_x1", r5_x1), flatten_local("r5_x2", r5_x2)
            r7_1, r7_2 = flatten_local("r7_x1", r7_x1), flatten_local("r7_x2", r7_x2)
            maps = {
                "r5_x1": r5_1,
                "r7_x1": r7_1,
                "r1_x2": src_2[:, None],
                "r5_x2": r5_2,
                "r7_x2": r7_2,
            }
            for name, feature_map in maps.items():
                check_pair("r1_x1", src_1, name, feature_map)
            if locations is None:
                locations = draw_locations(r5_1, generator), draw_locations(r5_2, generator)
            for index, feature_map in enumerate((r5_1, r5_2)):
                check_locations(f"locations[{index}]", locations[index], feature_map)

        # Of each direction: 1->5 and 5->5, which share targets, then 1->7.
        first, second = src_1[None], src_2[None]
        loss, _, mean_sq, _ = nce_op.nce_forward(
            [first, first, second, second],
            [r5_2, r7_2, r5_1, r7_1],
            picks=locations,
            pick_from=[2, nce_op.NO_PICK, 0, nce_op.NO_PICK],
            clip=clip_value(self.tclip),
            backend=self.backend,
            memory_budget=budget_value(self.memory_budget),
            group_name=self.group_name,
        )
        loss_1t5, loss_5t5, loss_1t7 = (0.5 * (loss[:3] + loss[3:])).unbind()
        penalty_1t5, penalty_5t5, penalty_1t7 = (mean_sq[:3] + mean_sq[3:]).unbind()
        penalty = penalty_1t5 + penalty_5t5 + penalty_1t7
        return loss_1t5, loss_1t7, loss_5t5, 0.5 * self.reg_weight * penalty
