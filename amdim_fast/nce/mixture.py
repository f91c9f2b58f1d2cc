"""Mixtures: K components in place of each global feature, and the loss in which locations choose.

Source: our reading of Bachman, Hjelm, Buchwalter 2019 (arXiv:1906.00910), section 3.7, for which no
code was released; ``docs/mixtures.md`` lists every assumption.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from amdim_fast.checks import whole_number
from amdim_fast.distributed.agreement import ErrorsOnAllRanks
from amdim_fast.nce import op
from amdim_fast.nce.feature_maps import (
    check_pair,
    flatten_global,
    flatten_local,
    view_locations,
)
from amdim_fast.nce.inputs import check_tensor, check_weight, of_one_dtype
from amdim_fast.nce.module import NCEModule
from amdim_fast.nce.wiring import NO_ORIGIN

# Standard deviation of what a component adds to f_1 at first; that of f_1 itself is about 1.
INITIAL_SPREAD = 0.1


def responsibilities(log_prob: Tensor, tau: float) -> Tensor:
    """Posterior over components: ``softmax_j(tau * log_prob[j])`` of [K, ...], in its dtype.

    The argmax over K is the segmentation: which component explains a location best.
    """
    return torch.softmax(tau * log_prob, dim=0)


class MixtureHead(nn.Module):
    """K components of each global feature: ``f_1 + (linear(relu(linear(f_1))))_k``.

    One fully connected network with one ReLU layer, shared by the components up to its last layer,
    and a residual connection from f_1 to each component.

    Args:
        n_rkhs: D, width of the features.
        components: K; only 2 or more make a mixture, 1 is one transformed feature.
        hidden: width of the hidden layer; D if None.

    Raises:
        ValueError: an argument is not a whole number, 1 or more.

    At first each component is f_1 plus its own random deviation, with a standard deviation of about
    0.1 for entries of f_1 with 1, as after BatchNorm. That is near the identity, so that training
    starts like AMDIM's, but not at it: equal components would get equal gradients and stay equal.
    Biases start at 0.
    """

    def __init__(self, n_rkhs: int, components: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = n_rkhs if hidden is None else hidden
        sizes = {"n_rkhs": n_rkhs, "components": components, "hidden": hidden}
        for name, value in sizes.items():
            whole_number(name, value)
        self.n_rkhs, self.components, self.hidden = n_rkhs, components, hidden
        self.linear_1 = nn.Linear(n_rkhs, hidden)
        self.linear_2 = nn.Linear(hidden, components * n_rkhs)
        nn.init.kaiming_normal_(self.linear_1.weight, nonlinearity="relu")
        nn.init.normal_(self.linear_2.weight, std=INITIAL_SPREAD / math.sqrt(hidden))
        nn.init.zeros_(self.linear_1.bias)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, r1: Tensor) -> Tensor:
        """[B, D, 1, 1] or [B, D] global features -> [K, B, D] components in the dtype of r1."""
        features = flatten_global("r1", r1)
        if features.shape[1] != self.n_rkhs:
            raise ValueError(f"r1 has width {features.shape[1]}; it must be {self.n_rkhs}")
        residual = self.linear_2(torch.relu(self.linear_1(features)))
        residual = residual.view(-1, self.components, self.n_rkhs).transpose(0, 1)
        return features + residual.to(features.dtype)


class MixtureLosses(NamedTuple):
    """The four parts of the objective, and two detached statistics of the 7x7 posterior."""

    loss_1t5: Tensor
    loss_1t7: Tensor
    loss_5t5: Tensor
    lgt_reg: Tensor  # weighted
    entropy: Tensor  # scalar, nats: mean entropy of a location's posterior
    usage: Tensor  # [K], mean posterior; sums to 1

    @property
    def usage_entropy(self) -> Tensor:
        """Entropy of the mean posterior in nats; log K if all components are used equally."""
        return torch.special.entr(self.usage).sum()


class MixtureNCELoss(NCEModule):
    """The objective of AMDIM with K components in place of each global feature.

    Equals ``amdim_fast.nce.reference_mixture.multiscale_mixture``. In each of the two directions,
    with s[j,b,l] the log-probability of component j, as in ``nce_log_prob``:

        q = softmax_j(tau * s)
        loss_1t5, loss_1t7 = -mean_{b,l} (sum_j q s + alpha H(q))        to 5x5, to 7x7
        loss_5t5 = that of LossMultiNCE
        lgt_reg = 0.5 * reg_weight * the sum of the six mean squared raw scores,
                  where a cost of K components counts once, with their mean

    With one component it is LossMultiNCE. If alpha = 1/tau, the loss is
    ``-mean(logsumexp_j(tau s)) / tau`` and the gradient through q vanishes.

    Args:
        tau: inverse temperature of the posterior, 1/nats. At 0 all components share equally; for
            large tau the best one takes all. 5 separated best in ``benchmarks/emergence.py``.
        alpha: weight of the posterior's entropy; None is 1/tau, for which q is optimal.
        tclip: bound on |score| in nats, or None.
        reg_weight: weight of each mean squared raw score, before the factor 0.5.
        group: as in ``nce_log_prob``: the images of all its ranks are negatives. Each loss is the
            mean over this rank's images, the penalty that of the whole batch. Kept by name.
        memory_budget: byte limit for score-shaped buffers, as in ``nce_log_prob``.
        backend: as in ``nce_log_prob``.
        precision: as in ``nce_log_prob``.

    One call of the op for all 4 K + 2 costs; components are stacked sources, so nothing of size
    K x B x B x L is stored beyond ``memory_budget``. No parameters and no buffers.
    """

    def __init__(
        self,
        tau: float = 5.0,
        alpha: float | None = None,
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
        for name, value in (("tau", tau), ("alpha", alpha), ("reg_weight", reg_weight)):
            if value is not None:
                check_weight(name, value)
        if alpha is None and tau == 0:
            raise ValueError("tau is 0 and alpha is None, which stands for 1/tau; give an alpha")
        self.tau = tau
        self.alpha = 1.0 / tau if alpha is None else alpha
        self.reg_weight = reg_weight

    def extra_repr(self) -> str:
        """The arguments shown in the repr."""
        return (
            f"tau={self.tau}, alpha={self.alpha}, tclip={self.tclip},"
            f" reg_weight={self.reg_weight}, backend={self.backend!r}"
        )

    def forward(
        self,
        components_x1: Tensor,
        r5_x1: Tensor,
        r7_x1: Tensor,
        components_x2: Tensor,
        r5_x2: Tensor,
        r7_x2: Tensor,
        *,
        locations: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> MixtureLosses:
        """Losses of two views of B images.

        Args:
            components_x1: [K, B, D] of view 1, such as ``MixtureHead(r1)``.
            r5_x1: [B, D, 5, 5] local features of view 1; other map sizes work too.
            r7_x1: [B, D, 7, 7] local features of view 1; other map sizes work too.
            components_x2: as components_x1, of view 2.
            r5_x2: as r5_x1, of view 2.
            r7_x2: as r7_x1, of view 2.
            locations: as in ``LossMultiNCE``.
            generator: as in ``LossMultiNCE``.

        Returns:
            MixtureLosses, float32 (float64 for float64 inputs); the training objective is the sum
            of the first four.

        Raises:
            ValueError: shapes, devices or locations do not fit. TypeError: dtypes differ.
        """
        with ErrorsOnAllRanks(self.group_name):
            components_x1, r5_x1, r7_x1, components_x2, r5_x2, r7_x2 = of_one_dtype(
                (components_x1, r5_x1, r7_x1, components_x2, r5_x2, r7_x2)
            )
            for name, features in (
                ("components_x1", components_x1),
                ("components_x2", components_x2),
            ):
                check_tensor(name, features)
                if features.dim() != 3:
                    raise ValueError(
                        f"{name} has shape {list(features.shape)}; it must be [K, B, D]"
                    )
            r5_1, r5_2 = flatten_local("r5_x1", r5_x1), flatten_local("r5_x2", r5_x2)
            r7_1, r7_2 = flatten_local("r7_x1", r7_x1), flatten_local("r7_x2", r7_x2)
            maps = {"r5_x1": r5_1, "r7_x1": r7_1, "r5_x2": r5_2, "r7_x2": r7_2}
            for name, feature_map in maps.items():
                check_pair("components_x1", components_x1, name, feature_map)
            if components_x2.shape != components_x1.shape:
                raise ValueError(
                    f"components_x2 has shape {list(components_x2.shape)} and components_x1"
                    f" {list(components_x1.shape)}; they must be equal"
                )
            check_pair("components_x2", components_x2, "r5_x1", r5_1)
            locations = view_locations(locations, (r5_1, r5_2), generator)

        targets = [r5_2, r7_2, r5_1, r7_1]
        # In each direction: 1->5 and 5->5, which share targets, then 1->7.
        outputs = op.nce_forward(
            [components_x1, components_x1, components_x2, components_x2],
            targets,
            self._settings(),
            op.Weights(1, 1.0, 1.0),
            picks=locations,
            pick_from=[2, NO_ORIGIN, 0, NO_ORIGIN],
            group_name=self.group_name,
        )
        count, images, _ = components_x1.shape
        sets = [count + 1, count] * 2
        shapes = [(s, images, trg.shape[1]) for s, trg in zip(sets, targets, strict=True)]
        log_probs = [
            part.view(shape)[:count]
            for part, shape in zip(
                outputs.log_prob.split(list(map(math.prod, shapes))), shapes, strict=True
            )
        ]
        first_1t5, first_1t7, second_1t5, second_1t7 = (self._expected(part) for part in log_probs)
        losses, squares = outputs.loss.split(sets), outputs.mean_sq.split(sets)
        penalty = squares[0][count] + squares[2][count]
        penalty = penalty + torch.stack([part[:count].mean() for part in squares]).sum()
        return MixtureLosses(
            loss_1t5=0.5 * (first_1t5[0] + second_1t5[0]),
            loss_1t7=0.5 * (first_1t7[0] + second_1t7[0]),
            loss_5t5=0.5 * (losses[0][count] + losses[2][count]),
            lgt_reg=self.reg_weight * (0.5 * penalty),
            entropy=0.5 * (first_1t7[1] + second_1t7[1]),
            usage=0.5 * (first_1t7[2] + second_1t7[2]),
        )

    def _expected(self, log_prob: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, detached mean entropy of q, and detached mean q [K], of log_prob [K, B, L]."""
        log_q = torch.log_softmax(self.tau * log_prob, dim=0)
        q = log_q.exp()
        loss = -(q * (log_prob - self.alpha * log_q)).sum(0).mean()
        entropy = -(q * log_q).detach().sum(0).mean()
        return loss, entropy, q.detach().mean(dim=(1, 2))
