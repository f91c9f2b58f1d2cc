"""Classes of a data set, matched by name with those that a model was trained on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from amdim_fast.data.datasets import ImageData
from amdim_fast.data.image_sets import ImageSet
from amdim_fast.data.phrases import listed


def with_labels_of(data: ImageData, names: Sequence[str], owner: str, advice: str) -> ImageData:
    """A data set whose labels are the places of its classes among ``names``.

    Args:
        data: with classes; not changed.
        names: the same names in the order of the labels that they shall have.
        owner: whose names these are, for the message.
        advice: what to do about names that do not match, for the message.

    Raises:
        ValueError: the data set has other classes.
    """
    if data.classes == tuple(names):
        return data
    new, missing = (
        sorted(set(some) - set(others))
        for some, others in ((data.classes, names), (names, data.classes))
    )
    if new or missing or len(names) != len(data.classes):
        said = [
            f"{what} {listed([*map(repr, some)]) or 'none'}"
            for what, some in (("new", new), ("missing", missing))
        ]
        raise ValueError(
            f"the classes of the data set are not those of {owner}: {', '.join(said)}; {advice}"
        )
    places = {name: place for place, name in enumerate(names)}
    table = torch.tensor([*(places[name] for name in data.classes), -1])

    def relabelled(images: ImageSet) -> ImageSet:
        images = copy.copy(images)
        images.labels = table[images.labels]  # -1 is the last entry
        return images

    return replace(
        data,
        train=relabelled(data.train),
        train_labeled=None if data.train_labeled is None else relabelled(data.train_labeled),
        test=None if data.test is None else relabelled(data.test),
        classes=tuple(names),
    )
