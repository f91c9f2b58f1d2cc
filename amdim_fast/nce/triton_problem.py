"""A pairing as the Triton kernels take it: tiles, how they get the products, and arguments."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amdim_fast.kernels import nce_clip, nce_layout
from amdim_fast.kernels.nce_tiles import Tile, TileSet, arithmetic
from amdim_fast.nce import tiles
from amdim_fast.nce.clip import LOG2_E
from amdim_fast.nce.plan import ROW_UNIT
from amdim_fast.nce.torch_backend import Pairing

PROGRAMS_PER_PROCESSOR = 4


class Route(NamedTuple):
    """How one kernel gets its products.

    Attributes:
        multiplies: whether it computes them itself; else it reads torch's.
        descriptors: whether it loads features through tensor descriptors; else through pointers.
        why: the reason if one of the two is False.
    """

    multiplies: bool
    descriptors: bool
    why: str | None

    def __str__(self) -> str:
        way = ("pointers", "descriptors")[self.descriptors] if self.multiplies else "products"
        return f"through {way}" + (f", since {self.why}" if self.why else "")


class Problem(NamedTuple):
    """A pairing as the kernels take it; ``image_offset`` is that of the pairing, not of a block."""

    src: Tensor  # [R, D]
    trg: Tensor  # [N, L, D]
    pairing: Pairing
    image_offset: int
    capability: tuple[int, int] | None
    tile_set: TileSet

    @property
    def scale(self) -> float:
        """``raw = scale * product``."""
        return 1.0 / math.sqrt(self.src.shape[1])

    @property
    def softmaxes(self) -> int:
        """M: softmaxes of a row, one per location for same_location, else one."""
        return self.trg.shape[1] if self.pairing.same_location else 1

    @property
    def forward_route(self) -> Route:
        """How the forward gets its products."""
        why = torch_multiplies(self.tile_set, self.src.shape[1])
        if self.pairing.plan.mode == "keep" and self.pairing.same_location:
            why = "the scores of each location are kept"
        return self._route(why, self.tile_set.forward)

    def backward_route(self, kept: bool) -> Route:
        """How the backward gets its products.

        It reads them for same_location: statistics of all locations do not fit beside a fused tile.
        """
        why = torch_multiplies(self.tile_set, self.src.shape[1])
        if self.pairing.same_location:
            why = "negatives are of the same location"
        return self._route("the forward kept them" if kept else why, self.tile_set.backward)

    def _route(self, why: str | None, tile: Tile) -> Route:
        if why:
            return Route(False, False, why)
        same = self.pairing.same_location
        why = nce_layout.descriptor_obstacle(self.trg, tile, self.capability, same)
        return Route(True, why is None, why)

    def strips(self, tile: Tile, columns: int) -> tuple[int, int]:
        """Number of strips of columns, enough for all multiprocessors, and of tiles in each."""
        device = self.src.device
        processors = 1
        if device.type == "cuda":
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        column_tiles = ceil_div(columns, tile.columns)
        row_tiles = ceil_div(self.src.shape[0], tile.rows) * self.softmaxes
        strips = min(column_tiles, ceil_div(PROGRAMS_PER_PROCESSOR * processors, row_tiles))
        per_strip = ceil_div(column_tiles, strips)
        return ceil_div(column_tiles, per_strip), per_strip

    def columns(self, start: int, stop: int) -> Tensor:
        """[n * L, D] targets start .. stop - 1."""
        return self.trg[start:stop].reshape(-1, self.trg.shape[2])

    def features(self, tile: Tile, route: Route, start: int, stop: int) -> tuple[Any, Any]:
        """The sources, and targets start .. stop - 1: tensors, or descriptors of them."""
        trg = self.trg[start:stop]
        if route.descriptors:
            return nce_layout.descriptors(self.src, trg, tile)
        return self.src, trg

    def sizes(self, scores: Tensor, start: int, stop: int) -> tuple[int, ...]:
        """The kernels' arguments ``nce_scores.SIZES``, for target images start .. stop - 1."""
        lengths = (self.src.shape[1], *nce_layout.strides(self.src), *nce_layout.strides(self.trg))
        images = self.pairing.src.shape[1]
        return (
            *(self.src.shape[0], stop - start, self.trg.shape[1], images),
            self.image_offset - start,
            *(length // nce_layout.FEATURE_UNIT for length in lengths),
            *(scores.stride(0) // ROW_UNIT, scores.shape[1] // ROW_UNIT),
        )

    def constants(self) -> tuple[float, float, float]:
        """``scale``, ``steep`` and ``depth`` of the kernels; see ``kernels.nce_clip``."""
        clip = self.pairing.clip
        if clip is None:
            return self.scale, 0.0, 0.0
        if self.pairing.shifted_clip is None:
            return self.scale, self.scale / clip, clip
        return self.scale, 2.0 * LOG2_E * self.scale / clip, -2.0 * LOG2_E * clip

    def settings(self, tile: Tile, route: Route, mode: int) -> dict[str, Any]:
        """What a kernel is compiled for; ``tests/kernels/aot.py`` compiles the same variants."""
        tf32 = route.multiplies and arithmetic(self.src.dtype) == "tf32"
        return {
            "SCORES": mode,
            "CLIP": clip_mode(self.pairing),
            "SAME_LOCATION": self.pairing.same_location,
            "TILE_ROWS": tile.rows,
            "TILE_COLUMNS": tile.columns,
            "TILE_WIDTH": tile.width or 16,
            "SWIZZLE_ROWS": tile.swizzle,
            "DESCRIPTORS": route.descriptors,
            "PRECISION": "tf32" if tf32 else "ieee",
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }


def make_problem(pairing: Pairing, image_offset: int, *, copy: bool = True) -> Problem:
    """The pairing with features in a layout that the kernels load.

    Features in another layout are copied once. With ``copy=False``, which is enough to decide the
    routes, a meta tensor stands in for the copy.
    """
    sets, images, _, width = pairing.sizes()
    src, trg = pairing.src.reshape(sets * images, width).contiguous(), pairing.trg
    capability = capability_of(src.device)
    tile_set = tiles.choose(capability, src.dtype, width)
    if torch_multiplies(tile_set, width) is None:
        device = None if copy else "meta"
        src, trg = (
            x
            if nce_layout.loadable(x)
            else torch.empty(x.shape, dtype=x.dtype, device=device or x.device).copy_(x)
            for x in (src, trg)
        )
    return Problem(src, trg, pairing, image_offset, capability, tile_set)


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability; None on a CPU, where the interpreter runs the kernels."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def torch_multiplies(tile_set: TileSet, width: int) -> str | None:
    """Why torch computes the products for this width, or None if the kernels do."""
    if not tile_set.fused:
        return "the tile table uses torch's product here"
    if width % nce_layout.FEATURE_UNIT:
        return f"D = {width} is not a multiple of {nce_layout.FEATURE_UNIT}"
    return None


def clip_mode(pairing: Pairing) -> int:
    """SHIFTED, TANH or NO_CLIP."""
    if pairing.clip is None:
        return int(nce_clip.NO_CLIP.value)
    return int((nce_clip.TANH if pairing.shifted_clip is None else nce_clip.SHIFTED).value)


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)
