"""What a resumed run does otherwise than before, for its log and for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from amdim_fast.training.recipes import Recipe
from amdim_fast.training.setup import Setup

_LENGTH = (
    "its learning rate is that of a run which has had this length and these milestones from the"
    " beginning, {rate:g} at the next step"
)
_SENTENCES = {
    "world_size": "with {now} process(es); before, there were {before}",
    "device": "on {now}; before, it was on {before}",
    "images": "with {now} training images; before, there were {before}",
    "steps": "to step {now}; before, it was to step {before}; " + _LENGTH,
    "milestones": "with milestones at the epochs {now}; before, at {before}; " + _LENGTH,
}


class Changes:
    """Machine, images and length of a run, now and as its checkpoint has them.

    Args:
        setup: of the run, before its contents are used up.
        images: number of training images.
        world_size: number of processes.

    Attributes:
        trains_on: whether its length has been changed.
    """

    def __init__(self, setup: Setup, images: int, world_size: int) -> None:
        contents = setup.contents
        self._now = _facts(setup.recipe, setup.device, images, world_size)
        self._before, self.trains_on = self._now, False
        if not contents:
            return
        begun = Recipe.from_dict(contents["recipe"])
        self.trains_on = bool(setup.recipe.differences(begun))
        self._before = _facts(
            begun, contents["device"], contents["data"]["images"], contents.get("world_size", 1)
        )

    def said(self, rate: float) -> Iterator[tuple[dict[str, Any], str]]:
        """An entry for the log, and a sentence, for each change; ``rate`` is the next step's."""
        for name, now in self._now.items():
            before = self._before[name]
            if now != before:
                sentence = _SENTENCES[name].format(now=now, before=before, rate=rate)
                yield {name: now, f"{name}_before": before}, sentence


def _facts(recipe: Recipe, device: str, images: int, world_size: int) -> Mapping[str, Any]:
    return {
        "world_size": world_size,
        "device": device,
        "images": images,
        "steps": recipe.total_steps(images),
        "milestones": list(recipe.milestones),
    }
