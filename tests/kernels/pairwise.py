"""Pairwise testing: few cases in which every two settings that occur together still do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

Case = TypeVar("Case")
Pair = tuple[Hashable, Hashable]


def pairs_of(settings: Mapping[str, Hashable]) -> set[Pair]:
    """Every two of a case's settings, with their names; of a single one, it with itself."""
    named = sorted(settings.items(), key=lambda item: item[0])
    return set(combinations(named, 2)) | {(item, item) for item in named}


def uncovered(
    cases: Iterable[Case],
    chosen: Iterable[Case],
    settings_of: Callable[[Case], Mapping[str, Hashable]],
) -> set[Pair]:
    """Pairs of settings of the cases that no chosen one has."""
    found: set[Pair] = set()
    for case in cases:
        found |= pairs_of(settings_of(case))
    for case in chosen:
        found -= pairs_of(settings_of(case))
    return found


def covering(
    cases: Sequence[Case], settings_of: Callable[[Case], Mapping[str, Hashable]]
) -> list[Case]:
    """Some of the cases, in their order, with every pair of settings of all of them.

    Greedy: each time the first of those with the most pairs that are still missing.
    """
    pairs = [pairs_of(settings_of(case)) for case in cases]
    missing: set[Pair] = set().union(*pairs)
    chosen = []
    while missing:
        gains = [len(found & missing) for found in pairs]
        best = gains.index(max(gains))
        chosen.append(best)
        missing -= pairs[best]
    return [cases[index] for index in sorted(chosen)]
