"""The AMDIM loss module.

Source: Bachman, Hjelm, Buchwalter 2019 (arXiv:1906.00910), section 3. The weight of the penalty is
5e-2 in the public code and 4e-2 in the paper; the clip is 20 in the public training script and 10
by default in the public class. Both are arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from amdim_fast.distributed.agreement import ErrorsOnAllRanks
from amdim_fast.nce import op
from amdim_fast.nce.changing import number
from amdim_fast.nce.feature_maps import (
    check_pair,
    flatten_global,
    flatten_local,
    view_locations,
)
from amdim_fast.nce.inputs import check_weight, of_one_dtype
from amdim_fast.nce.module import NCEModule
from amdim_fast.nce.wiring import NO_ORIGIN

# In each direction: 1->5 with the drawn sources of 5->5, then 1->7.
PICK_FROM = (2, NO_ORIGIN, 0, NO_ORIGIN)


class MultiNCEObjective(NamedTuple):
    """The objective and its four parts, scalars, float32 (float64 for float64 inputs)."""

    objective: Tensor  # differentiable
    loss_1t5: Tensor  # detached, as the rest
    loss_1t7: Tensor
    loss_5t5: Tensor
    lgt_reg: Tensor  # weighted


class LossMultiNCE(NCEModule):
    """The six costs of AMDIM; a replacement for the public code's module of this name.

    Equals ``amdim_fast.nce.reference.multiscale_nce``: r1 predicts the other view's 5x5 and 7x7
    maps, and one location of r5, drawn at random for each image, predicts the other view's 5x5 map;
    in both directions. Sources that share targets are stacked, so each map is read once.

    Args:
        tclip: bound on |score| in nats, or None.
        reg_weight: weight of each mean squared raw score, before the factor 0.5.
        group: as in ``nce_log_prob``: the images of all its ranks are negatives. Each loss is the
            mean over this rank's images, the penalty that of the whole batch. Kept by name.
        memory_budget: byte limit for score-shaped buffers, as in ``nce_log_prob``.
        backend: as in ``nce_log_prob``.
        precision: as in ``nce_log_prob``.

    It has no parameters and no buffers, and works on any device.
    """

    def __init__(
        self,
        tclip: float | None = 10.0,
        reg_weight: float = 5e-2,
        group: ProcessGroup | None = None,
        *,
        memory_budget: int | None = None,
        backend: str = "auto",
        precision: str = "auto",
    ) -> None:
        super().__init__(
            tclip=tclip,
            memory_budget=memory_budget,
            backend=backend,
            precision=precision,
            group=group,
        )
        check_weight("reg_weight", reg_weight)
        self.reg_weight = reg_weight

    def extra_repr(self) -> str:
        """The arguments shown in the repr."""
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
            r5_x1: [B, D, 5, 5] local features of view 1; other sizes work too, and [B, D, t] or
                [B, D, t, h, w].
            r7_x1: [B, D, 7, 7] local features of view 1, as r5_x1 of any size.
            r1_x2: as r1_x1, of view 2.
            r5_x2: as r5_x1, of view 2.
            r7_x2: as r7_x1, of view 2.
            locations: (view 1, view 2), int64 [B] each: row-major location of the 5x5 source;
                drawn uniformly if None.
            generator: draws the locations, on the features' device; the default one if None, which
                on CPUs draws the same locations as the public code.

        Returns:
            loss_1t5, loss_1t7, loss_5t5, lgt_reg: scalars, float32 (float64 for float64 inputs).
            Each loss is the mean of both directions, and lgt_reg = 0.5 * reg_weight * the sum of
            the six mean squared raw scores. The training objective is the sum of the four.

        Raises:
            ValueError: shapes, devices or locations do not fit. TypeError: dtypes differ.

        Channels_last maps are read in place; others are copied once.
        """
        with ErrorsOnAllRanks(self.group_name):
            features = _features(r1_x1, r5_x1, r7_x1, r1_x2, r5_x2, r7_x2, locations, generator)
        outputs = op.nce_forward(
            features.srcs,
            features.trgs,
            self._settings(),
            self._weights(),
            picks=features.locations,
            pick_from=PICK_FROM,
            group_name=self.group_name,
        )
        loss_1t5, loss_5t5, loss_1t7, penalty = outputs.totals.unbind()
        return loss_1t5, loss_1t7, loss_5t5, penalty

    def objective(
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
    ) -> MultiNCEObjective:
        """The sum of what ``forward`` returns, with its gradients from the same pass.

        As ``nce_objective``: faster, and with less memory, than the sum of the four. With a process
        group it is that sum. Arguments and errors are those of ``forward``.

        Returns:
            MultiNCEObjective; only ``objective`` is differentiable.
        """
        if self.group_name is not None:
            loss_1t5, loss_1t7, loss_5t5, penalty = self(
                *(r1_x1, r5_x1, r7_x1, r1_x2, r5_x2, r7_x2),
                locations=locations,
                generator=generator,
            )
            parts = (loss_1t5, loss_1t7, loss_5t5, penalty)
            total = loss_1t5 + loss_1t7 + loss_5t5 + penalty
            return MultiNCEObjective(total, *(part.detach() for part in parts))
        features = _features(r1_x1, r5_x1, r7_x1, r1_x2, r5_x2, r7_x2, locations, generator)
        found = op.nce_objective(
            features.srcs,
            features.trgs,
            self._settings(),
            self._weights(),
            picks=features.locations,
            pick_from=PICK_FROM,
        )
        loss_1t5, loss_5t5, loss_1t7, penalty = found.totals.unbind()
        return MultiNCEObjective(found.objective, loss_1t5, loss_1t7, loss_5t5, penalty)

    def _weights(self) -> op.Weights:
        """Means over both directions."""
        return op.Weights(parts=3, loss=0.5, mean_sq=0.5 * number(self.reg_weight))


class _Features(NamedTuple):
    """What the op takes: of each direction 1->5 and 5->5, which share targets, then 1->7."""

    srcs: list[Tensor]
    trgs: list[Tensor]
    locations: tuple[Tensor, Tensor]


_fitting: set[tuple[object, ...]] = set()  # shapes, types and devices that fit together


def _features(
    r1_x1: Tensor,
    r5_x1: Tensor,
    r7_x1: Tensor,
    r1_x2: Tensor,
    r5_x2: Tensor,
    r7_x2: Tensor,
    locations: tuple[Tensor, Tensor] | None,
    generator: torch.Generator | None,
) -> _Features:
    """Checked features, and the locations of the 5x5 sources."""
    r1_x1, r5_x1, r7_x1, r1_x2, r5_x2, r7_x2 = of_one_dtype(
        (r1_x1, r5_x1, r7_x1, r1_x2, r5_x2, r7_x2)
    )
    src_1, src_2 = flatten_global("r1_x1", r1_x1), flatten_global("r1_x2", r1_x2)
    r5_1, r5_2 = flatten_local("r5_x1", r5_x1), flatten_local("r5_x2", r5_x2)
    r7_1, r7_2 = flatten_local("r7_x1", r7_x1), flatten_local("r7_x2", r7_x2)
    tensors = src_1, r5_1, r7_1, src_2, r5_2, r7_2
    signature = None
    if not torch.compiler.is_compiling():
        signature = tuple([(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors])
    if signature is None or signature not in _fitting:
        named = {
            "r5_x1": r5_1,
            "r7_x1": r7_1,
            "r1_x2": src_2[:, None],
            "r5_x2": r5_2,
            "r7_x2": r7_2,
        }
        for name, feature_map in named.items():
            check_pair("r1_x1", src_1, name, feature_map)
        if signature is not None and all([type(size) is int for t in tensors for size in t.shape]):
            _fitting.add(signature)
    locations = view_locations(locations, (r5_1, r5_2), generator)
    first, second = src_1[None], src_2[None]
    return _Features([first, first, second, second], [r5_2, r7_2, r5_1, r7_1], locations)
