"""Contrastive comparisons of any feature maps, like lightning-bolts' task of the same name.

Source: ``pl_bolts.losses.self_supervised_learning.FeatureMapContrastiveTask``; its arithmetic is
that of the public AMDIM code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from amdim_fast.distributed.agreement import ErrorsOnAllRanks
from amdim_fast.nce import op
from amdim_fast.nce.feature_maps import check_pair, draw_locations, features_at, flatten_local
from amdim_fast.nce.inputs import of_one_dtype
from amdim_fast.nce.module import NCEModule

RANDOM_MAP = "r"
REG_WEIGHT = 5e-2
_COMPARISON = re.compile(r"[0-9r]{2}")


class FeatureMapContrastiveTask(NCEModule):
    """Anchor maps predict positive maps; a replacement for lightning-bolts' task.

    A comparison "ap" draws one location per image of anchor map a, uniformly, and scores it against
    all locations of positive map p: ``nce_loss(drawn [B, D], map [B, h*w, D], clip=tclip)``. "01,
    02, 11" on (r1, r5, r7) are the six costs of AMDIM.

    Args:
        comparisons: pairs of characters, separated by commas: index of the anchor map and index of
            the positive map, each 0 to 9 or "r" for a map drawn anew in every call.
        tclip: bound on |score| in nats, or None.
        bidirectional: whether a comparison is averaged with that of the views exchanged.
        memory_budget: byte limit for score-shaped buffers, as in ``nce_log_prob``.
        backend: as in ``nce_log_prob``.
        precision: as in ``nce_log_prob``.
        group: as in ``nce_log_prob``: the images of all its ranks are negatives. Each loss is the
            mean over this rank's images, the penalty that of the whole batch. Kept by name.

    Raises:
        ValueError: comparisons cannot be read, an option is out of range, or "r" is used with a
            group, whose ranks would draw different maps.

    Differences from lightning-bolts: there AMDIM's own tclip never reaches the task, which clips at
    10; there must be as many maps as comparisons; the first call fixes map sizes and device; maps
    whose channels differ are reshaped across images and give a meaningless number; a clip above 44
    overflows, and None fails. Maps for "r" are drawn by torch, not by NumPy's global generator, so
    that ``torch.manual_seed`` is enough; locations are drawn as in lightning-bolts.

    One call of the op; sources with the same target map are stacked. No parameters, no buffers.
    """

    def __init__(
        self,
        comparisons: str = "00, 11",
        tclip: float | None = 10.0,
        bidirectional: bool = True,
        *,
        memory_budget: int | None = None,
        backend: str = "auto",
        precision: str = "auto",
        group: ProcessGroup | None = None,
    ) -> None:
        pairs = [part.strip() for part in comparisons.split(",")]
        for pair in pairs:
            if not _COMPARISON.fullmatch(pair):
                raise ValueError(
                    f"comparisons has {pair!r}; each must be two characters, 0 to 9 or 'r', such as"
                    " '01, 02, 11'"
                )
        if group is not None and RANDOM_MAP in comparisons:
            raise ValueError(
                f"comparisons is {comparisons!r} and a group is given, whose ranks would draw"
                " different maps for 'r'; name the maps"
            )
        super().__init__(
            tclip=tclip,
            memory_budget=memory_budget,
            backend=backend,
            precision=precision,
            group=group,
        )
        self.comparisons = comparisons
        self.pairs = tuple((pair[0], pair[1]) for pair in pairs)
        self.bidirectional = bidirectional

    def extra_repr(self) -> str:
        """The arguments shown in the repr."""
        return f"{self.comparisons!r}, tclip={self.tclip}, bidirectional={self.bidirectional}"

    def forward(
        self,
        anchor_maps: Sequence[Tensor],
        positive_maps: Sequence[Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Losses of all comparisons.

        Args:
            anchor_maps: [B, D, h, w] each, of one view; any number and any sizes, [B, D, t] too.
            positive_maps: as many, of the other view, the same size index by index.
            generator: draws maps and locations, on the maps' device; the default one if None.

        Returns:
            losses: [n], one per comparison, float32 (float64 for float64 maps).
            regularizer: scalar, 5e-2 * the sum over comparisons of the mean squared raw score.

        Raises:
            ValueError: a map is missing, or shapes disagree. TypeError: dtypes differ.
        """
        with ErrorsOnAllRanks(self.group_name):
            if len(anchor_maps) != len(positive_maps):
                raise ValueError(
                    f"anchor_maps has {len(anchor_maps)} maps and positive_maps"
                    f" {len(positive_maps)}; their numbers must be equal"
                )
            every = of_one_dtype([*anchor_maps, *positive_maps])
            anchor_maps, positive_maps = every[: len(anchor_maps)], every[len(anchor_maps) :]
            views = [
                [flatten_local(f"{name}[{index}]", item) for index, item in enumerate(maps)]
                for name, maps in (("anchor_maps", anchor_maps), ("positive_maps", positive_maps))
            ]
            sources: dict[tuple[int, int], list[Tensor]] = {}
            places = []
            for pair in self.pairs:
                anchor, positive = (
                    self._index(symbol, len(anchor_maps), generator) for symbol in pair
                )
                for view in (0, 1) if self.bidirectional else (0,):
                    src_map, trg = views[view][anchor], views[1 - view][positive]
                    names = ("anchor_maps", "positive_maps")
                    src_name = f"{names[view]}[{anchor}]"
                    trg_name = f"{names[1 - view]}[{positive}]"
                    if src_map.shape[2] != trg.shape[2]:
                        maps = (anchor_maps, positive_maps)
                        raise ValueError(
                            f"comparison {''.join(pair)!r} takes {src_name} of shape"
                            f" {list(maps[view][anchor].shape)} and {trg_name} of"
                            f" {list(maps[1 - view][positive].shape)}, whose channels differ;"
                            f" {_ways_on(len(anchor_maps))}"
                        )
                    check_pair(src_name, src_map[:, 0], trg_name, trg)
                    target = (1 - view, positive)
                    stack = sources.setdefault(target, [])
                    places.append((target, len(stack)))
                    stack.append(features_at(src_map, draw_locations(src_map, generator)))

        outputs = op.nce_forward(
            [torch.stack(stack) for stack in sources.values()],
            [views[view][index] for view, index in sources],
            self._settings(),
            op.Weights(1, 1.0, 1.0),
            group_name=self.group_name,
        )
        starts = {}
        total = 0
        for target, stack in sources.items():
            starts[target] = total
            total += len(stack)
        order = [starts[target] + offset for target, offset in places]
        losses, squares = (
            torch.stack([values[index] for index in order]).view(len(self.pairs), -1).mean(1)
            for values in (outputs.loss, outputs.mean_sq)
        )
        return losses, REG_WEIGHT * squares.sum()

    @staticmethod
    def _index(symbol: str, count: int, generator: torch.Generator | None) -> int:
        if symbol == RANDOM_MAP:
            device = "cpu" if generator is None else generator.device
            return int(torch.randint(0, count, (), generator=generator, device=device))
        if int(symbol) >= count:
            raise ValueError(f"comparisons names map {symbol}, but there are only {count} maps")
        return int(symbol)


def _ways_on(count: int) -> str:
    """What to do with maps of different widths."""
    own = ", ".join(f"{index}{index}" for index in range(count))
    return (
        "project the maps to one width, such as each with an nn.Conv2d(channels, width, 1), or"
        f" compare each with itself: {own!r}"
    )
