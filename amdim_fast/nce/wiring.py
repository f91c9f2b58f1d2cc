"""Which sources meet which targets in a call, and which of them want gradients."""

from __future__ import annotations

from typing import NamedTuple

NO_ORIGIN = -1


class Finish(NamedTuple):
    """What becomes of the gradient of a pairing's stacked sources.

    Attributes:
        pairing: its index.
        given: whether it has the gradient of the given sources.
        drawn: whether it has drawn sources whose gradient is wanted.
    """

    pairing: int
    given: bool
    drawn: bool


class Wiring(NamedTuple):
    """Sources and targets of the pairings of a call.

    Attributes:
        src_of: for each pairing, which of the given sources it has.
        pick_from: for each pairing, the one whose targets its drawn sources come from, or
            NO_ORIGIN.
        needs: which of the given sources, and then of the targets, want gradients.
        srcs: number of given sources.
    """

    src_of: tuple[int, ...]
    pick_from: tuple[int, ...]
    needs: tuple[bool, ...]
    srcs: int

    @property
    def pairings(self) -> range:
        """Indices of the pairings."""
        return range(len(self.src_of))

    def draws(self, index: int) -> bool:
        """Whether a pairing has drawn sources."""
        return self.pick_from[index] != NO_ORIGIN

    def needs_trg(self, index: int) -> bool:
        """Whether the gradient of a pairing's targets is wanted."""
        return self.needs[self.srcs + index]

    def needs_drawn(self, index: int) -> bool:
        """Whether the gradient of a pairing's drawn sources is wanted."""
        return self.draws(index) and self.needs_trg(self.pick_from[index])

    def needs_src(self, index: int) -> bool:
        """Whether that of a pairing's stacked sources is wanted: of given or of drawn ones."""
        return self.needs[self.src_of[index]] or self.needs_drawn(index)

    def shares(self, index: int) -> int | None:
        """The earlier pairing to whose sources' gradient a pairing adds its own, or None."""
        if self.draws(index):
            return None
        place = self.src_of[index]
        earlier = (i for i in range(index) if self.src_of[i] == place and self.needs_src(i))
        return next(earlier, None)

    def joins(self, index: int) -> int | None:
        """The earlier pairing that takes the gradient of a pairing's given sources, or None.

        Other than with ``shares``, the pairing has drawn ones too, and so a gradient of its own.
        """
        place = self.src_of[index]
        if not self.draws(index) or not self.needs[place]:
            return None
        return next((i for i in range(index) if self.src_of[i] == place), None)

    def finishes(self) -> list[Finish]:
        """How gradients of sources get to their place."""
        found, written = [], set()
        for index in self.pairings:
            place = self.src_of[index]
            given = self.needs[place] and place not in written
            written.add(place)
            if given or self.needs_drawn(index):
                found.append(Finish(index, given, self.needs_drawn(index)))
        return found
