"""One group as the Triton kernels take it: tiles, the way to its products, and their arguments."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amdim_fast.kernels import nce_layout
from amdim_fast.kernels import nce_scores as modes
from amdim_fast.kernels.nce_tiles import Blocks, Tile, arithmetic
from amdim_fast.nce import tiles
from amdim_fast.nce.plan import ROW_UNIT
from amdim_fast.nce.torch_backend import LOG2_E, Group

PROGRAMS_PER_PROCESSOR = 4


class Route(NamedTuple):
    """How one kernel gets its products.

    Attributes:
        multiplies: whether it computes them itself; else it reads what torch multiplied.
        descriptors: whether it loads features through tensor descriptors; else through pointers.
        why: the reason where one of the two is False.
    """

    multiplies: bool
    descriptors: bool
    why: str | None

    def __str__(self) -> str:
        way = ("pointers", "descriptors")[self.descriptors] if self.multiplies else "products"
        return f"through {way}" + (f", since {self.why}" if self.why else "")


class Problem(NamedTuple):
    """One group as the kernels take it; ``image_offset`` is of the whole, not of a block."""

    src: Tensor  # [R, D]
    trg: Tensor  # [N, L, D]
    group: Group
    image_offset: int
    capability: tuple[int, int] | None
    blocks: Blocks

    @property
    def scale(self) -> float:
        """``raw = scale * product``."""
        return 1.0 / math.sqrt(self.src.shape[1])

    @property
    def groups(self) -> int:
        """G: problems that are summed apart, one a location or one in all."""
        return self.trg.shape[1] if self.group.same_location else 1

    @property
    def forward_route(self) -> Route:
        """The way of the forward."""
        why = torch_multiplies(self.blocks, self.src.shape[1])
        if self.group.plan.mode == "keep" and self.group.same_location:
            why = "the scores of each location are kept"
        return self._route(why, self.blocks.forward)

    def backward_route(self, kept: bool) -> Route:
        """The way of the backward; statistics of every row and location do not fit a fused tile."""
        why = torch_multiplies(self.blocks, self.src.shape[1])
        if self.group.same_location:
            why = "negatives are of the same location"
        return self._route("the forward kept them" if kept else why, self.blocks.backward)

    def _route(self, why: str | None, tile: Tile) -> Route:
        if why:
            return Route(False, False, why)
        same = self.group.same_location
        why = nce_layout.descriptor_obstacle(self.trg, tile, self.capability, same)
        return Route(True, why is None, why)

    def strips(self, tile: Tile, columns: int) -> tuple[int, int]:
        """Strips of columns, enough for every multiprocessor, and the tiles in each."""
        device = self.src.device
        processors = 1
        if device.type == "cuda":
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        tiles = ceil_div(columns, tile.columns)
        row_blocks = ceil_div(self.src.shape[0], tile.rows) * self.groups
        strips = min(tiles, ceil_div(PROGRAMS_PER_PROCESSOR * processors, row_blocks))
        per_strip = ceil_div(tiles, strips)
        return ceil_div(tiles, per_strip), per_strip

    def columns(self, start: int, stop: int) -> Tensor:
        """[n * L, D] targets start .. stop - 1."""
        return self.trg[start:stop].reshape(-1, self.trg.shape[2])

    def features(self, tile: Tile, route: Route, start: int, stop: int) -> tuple[Any, Any]:
        """The sources, and targets start .. stop - 1, as the kernel takes them."""
        trg = self.trg[start:stop]
        if route.descriptors:
            return nce_layout.descriptors(self.src, trg, tile)
        return self.src, trg

    def sizes(self, scores: Tensor, start: int, stop: int) -> tuple[int, ...]:
        """The arguments named in ``nce_scores.SIZES`` for target images start .. stop - 1."""
        lengths = (self.src.shape[1], *nce_layout.strides(self.src), *nce_layout.strides(self.trg))
        images = self.group.src.shape[1]
        return (
            *(self.src.shape[0], stop - start, self.trg.shape[1], images),
            self.image_offset - start,
            *(length // nce_layout.FEATURE_UNIT for length in lengths),
            *(scores.stride(0) // ROW_UNIT, scores.shape[1] // ROW_UNIT),
        )

    def constants(self) -> tuple[float, float, float]:
        """Scale, steep and depth of the kernels."""
        clip = self.group.clip
        if clip is None:
            return self.scale, 0.0, 0.0
        if self.group.shifted_clip is None:
            return self.scale, self.scale / clip, clip
        return self.scale, 2.0 * LOG2_E * self.scale / clip, -2.0 * LOG2_E * clip

    def settings(self, tile: Tile, route: Route, mode: int) -> dict[str, Any]:
        """What a kernel is compiled for; the gate of ``benchmarks/aot.py`` compiles the same."""
        tf32 = route.multiplies and arithmetic(self.src.dtype) == "tf32"
        return {
            "SCORES": mode,
            "CLIP": clip_mode(self.group),
            "SAME_LOCATION": self.group.same_location,
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLUMNS": tile.columns,
            "BLOCK_WIDTH": tile.width or 16,
            "GROUP_ROWS": tile.group,
            "DESCRIPTORS": route.descriptors,
            "PRECISION": "tf32" if tf32 else "ieee",
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }


def make_problem(group: Group, image_offset: int, *, copy: bool = True) -> Problem:
    """The group with features in a layout the kernels load.

    A layout they do not is copied once, or with ``copy=False``, for questions about routes only,
    stands for such a copy without memory.
    """
    sets, images, _, width = group.sizes()
    src, trg = group.src.reshape(sets * images, width).contiguous(), group.trg
    capability = capability_of(src.device)
    blocks = tiles.choose(capability, src.dtype, width)
    if torch_multiplies(blocks, width) is None:
        device = None if copy else "meta"
        src, trg = (
            x
            if nce_layout.loadable(x)
            else torch.empty(x.shape, dtype=x.dtype, device=device or x.device).copy_(x)
            for x in (src, trg)
        )
    return Problem(src, trg, group, image_offset, capability, blocks)


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability; None on a CPU, where the interpreter runs the kernels."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def torch_multiplies(blocks: Blocks, width: int) -> str | None:
    """Why the kernels do not multiply features of this width, or None if they do."""
    if not blocks.fused:
        return "the block row says so"
    if width % nce_layout.FEATURE_UNIT:
        return f"D = {width} is not a multiple of {nce_layout.FEATURE_UNIT}"
    return None


def clip_mode(group: Group) -> int:
    """SHIFTED, TANH or NO_CLIP."""
    if group.clip is None:
        return int(modes.NO_CLIP.value)
    return int((modes.TANH if group.shifted_clip is None else modes.SHIFTED).value)


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)
