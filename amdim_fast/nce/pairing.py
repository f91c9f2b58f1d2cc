"""One pairing of a call, the results of all of its rows, and the options that every pass needs."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from amdim_fast.nce.plan import PairingPlan
from amdim_fast.nce.scratch import Scratch
from amdim_fast.nce.way import PairingShape


class Options(NamedTuple):
    """Options of a call.

    Attributes:
        clip: bound on |score| in nats, or None.
        same_location: whether negatives are taken at the same location only.
        limbs: whether float32 features are multiplied as float16 limbs.
        parts: set s counts in total ``s % parts``.
        loss_weight: weight of each loss in the totals.
        mean_sq_weight: weight of each mean of raw^2 in the last total.
    """

    clip: float | None
    same_location: bool
    limbs: bool
    parts: int
    loss_weight: float
    mean_sq_weight: float


class Pairing(NamedTuple):
    """Stacked sources with the targets that they share, and where its rows lie in the results.

    Attributes:
        src: [S * B, D].
        trg: [N, L, D].
        shape: S, B, N, L, D.
        plan: how it is computed.
        options: of the call.
        first_set: of its S sets, in the call.
        first_own: of its own scores, in flat results.
        first_sum: of its log-sums, in flat results.
        image_offset: the own image of source b is target b + image_offset; if there is no such
            target, its own scores are 0 and every target is a negative.
        scratch: memory for scores that no other pairing of the call needs at the time, or None.
    """

    src: Tensor
    trg: Tensor
    shape: PairingShape
    plan: PairingPlan
    options: Options
    first_set: int
    first_own: int
    first_sum: int
    image_offset: int = 0
    scratch: Scratch | None = None

    @property
    def first_row(self) -> int:
        """Of its rows, in flat results."""
        return self.first_set * self.shape.images

    @property
    def softmaxes(self) -> int:
        """Log-sums of a row: one, or one for each location."""
        return self.shape.locations if self.options.same_location else 1

    @property
    def scale(self) -> float:
        """``raw = scale * product``."""
        return 1.0 / math.sqrt(self.shape.width)

    @property
    def own_share(self) -> float:
        """Share of one log-probability in the loss of its set."""
        return 1.0 / (self.shape.images * self.shape.locations)

    @property
    def square_share(self) -> float:
        """Share of one raw^2 in the mean of its set."""
        return 1.0 / (self.shape.images * self.shape.columns)

    def own(self, flat: Tensor) -> Tensor:
        """[R, L] view of this pairing's part of score or log_prob."""
        rows, locations = self.shape.rows, self.shape.locations
        return flat[self.first_own : self.first_own + rows * locations].view(rows, locations)

    def sums(self, flat: Tensor) -> Tensor:
        """[R, M] view of this pairing's part of neg."""
        size = self.shape.rows * self.softmaxes
        return flat[self.first_sum : self.first_sum + size].view(self.shape.rows, -1)

    def rows(self, flat: Tensor) -> Tensor:
        """[R] view of this pairing's part of row_loss or row_square."""
        return flat[self.first_row : self.first_row + self.shape.rows]

    def sets(self, flat: Tensor) -> Tensor:
        """[S] view of this pairing's part of loss or mean_sq."""
        return flat[self.first_set : self.first_set + self.shape.sets]


class Results(NamedTuple):
    """Flat results of all rows of a call, pairing after pairing, in the dtype of the scores."""

    score: Tensor  # [sum of R L]: clipped score with each location of the own image
    log_prob: Tensor  # [sum of R L]
    neg: Tensor  # [sum of R M]: log-sums over the negatives
    row_loss: Tensor  # [sum of R]: share of each row in the loss of its set
    row_square: Tensor  # [sum of R]: share of each row in the mean of raw^2 of its set


class Upstream(NamedTuple):
    """Gradients of the results; all None in one pass, whose objective has gradient 1."""

    log_prob: Tensor | None = None  # flat
    loss: Tensor | None = None  # [sets]
    mean_sq: Tensor | None = None  # [sets]
    totals: Tensor | None = None  # [parts + 1]
    of_objective: bool = False
