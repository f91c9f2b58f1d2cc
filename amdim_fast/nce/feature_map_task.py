"""Contrastive comparisons of any feature maps, as lightning-bolts' task of the same name.

Source: ``pl_bolts.losses.self_supervised_learning.FeatureMapContrastiveTask``; its arithmetic is
that of the public AMDIM code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from amdim_fast.distributed.agreement import ErrorsOnAllRanks
from amdim_fast.nce import op as nce_op
from amdim_fast.nce.feature_maps import check_pair, draw_locations, flatten_local
from amdim_fast.nce.functional import budget_value, check_options, clip_value, group_name

RANDOM_MAP = "r"
REG_WEIGHT = 5e-2
_COMPARISON = re.compile(r"[0-9r]{2}")


class FeatureMapContrastiveTask(nn.Module):
    """Anchor maps predict positive maps; takes the place of lightning-bolts' task.

    A comparison "ap" draws one location an image of anchor map a, uniformly, and scores it against
    all locations of positive map p: ``nce_loss(drawn [B, D], map [B, h*w, D], clip=tclip)``. "01,
    02, 11" on (r1, r5, r7) are the six costs of AMDIM.

    Args:
        comparisons: two characters each, comma between them: index of the anchor map, index of the
            positive map, each 0 to 9 or "r" for a map drawn anew in every call.
        tclip: bound on |score| in nats, or None.
        bidirectional: also the comparison with both roles exchanged, and the mean of the two.
        memory_budget: bytes for blocks of scores, as in ``nce_log_prob``.
        backend: as in ``nce_log_prob``.
        group: as in ``nce_log_prob``: the images of all its ranks are negatives. Each loss is the
            mean over this rank's images, the penalty that of the whole batch. Kept by name.

    Raises:
        ValueError: comparisons cannot be read, an option is out of range, or "r" is used with a
            group, whose ranks would draw different maps.

    Not kept of lightning-bolts: there AMDIM's own tclip never reaches the task, which clips at 10;
    the number of maps must be that of the comparisons, and map sizes, with their device, are fixed
    by the first call; maps whose channels differ are reshaped across images and give a number; and
    a clip above 44 overflows, None fails. Maps for "r" are drawn by torch, not by NumPy's global
    generator, so that ``torch.manual_seed`` is enough; locations are drawn as there.

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
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_options(tclip, "tclip", backend, memory_budget)
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
        self.comparisons = comparisons
        self.pairs = tuple((pair[0], pair[1]) for pair in pairs)
        self.tclip = tclip
        self.bidirectional = bidirectional
        self.memory_budget = memory_budget
        self.group_name = group_name(group)
        self.backend = backend

    def extra_repr(self) -> str:
        """The arguments by which two tasks differ."""
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
            anchor_maps: [B, D, h, w] each, of one view; any number and any sizes.
            positive_maps: as many, of the other view, index by index of the same size.
            generator: draws maps and locations, on the maps' device; the default one otherwise.

        Returns:
            losses: [n], one a comparison, float32 (float64 for float64 maps).
            regularizer: scalar, 5e-2 * the sum over comparisons of the mean squared raw score.

        Raises:
            ValueError: a map is missing, or shapes disagree. TypeError: dtypes differ.
        """
        with ErrorsOnAllRanks(self.group_name):
            if len(anchor_maps) != len(positive_maps):
                raise ValueError(
                    f"anchor_maps has {len(anchor_maps)} maps and positive_maps"
                    f" {len(positive_maps)}; they must have as many"
                )
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
                    check_pair(src_name, src_map[:, 0], f"{names[1 - view]}[{positive}]", trg)
                    target = (1 - view, positive)
                    stack = sources.setdefault(target, [])
                    places.append((target, len(stack)))
                    stack.append(_pick(src_map, draw_locations(src_map, generator)))

        loss, _, mean_sq, _ = nce_op.nce_forward(
            [torch.stack(stack) for stack in sources.values()],
            [views[view][index] for view, index in sources],
            clip=clip_value(self.tclip),
            backend=self.backend,
            memory_budget=budget_value(self.memory_budget),
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
            for values in (loss, mean_sq)
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


def _pick(feature_map: Tensor, location: Tensor) -> Tensor:
    """[B, D] of [B, L, D] at one location an image."""
    index = location[:, None, None].expand(-1, 1, feature_map.shape[2])
    return feature_map.gather(1, index).squeeze(1)
