"""What AMDIM's forward returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AMDIMOutput(NamedTuple):
    """The four parts of the objective, float32 scalars, and the global features of both views."""

    loss_1t5: Tensor
    loss_1t7: Tensor
    loss_5t5: Tensor
    lgt_reg: Tensor  # weighted
    r1_x1: Tensor  # [B, D, 1, 1]
    r1_x2: Tensor  # [B, D, 1, 1]
    entropy: Tensor | None = None  # mean over locations of the posterior's, nats; with components
    usage: Tensor | None = None  # [K] mean posterior; with components
    total: Tensor | None = None  # the sum of the four where it was made with its gradients

    @property
    def loss(self) -> Tensor:
        """The sum of the four parts, which pre-training minimizes."""
        if self.total is not None:
            return self.total
        return self.loss_1t5 + self.loss_1t7 + self.loss_5t5 + self.lgt_reg
