"""Everything that calls have compiled: kernels with types, constants and options.

The passes run with a recorder in the place of ``launch.launch`` and with tensors that have no
memory, so this needs no GPU and works in the interpreter too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from amdim_fast.kernels import launch, nce_tile_table
from amdim_fast.kernels.nce_tiles import TileSet
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from amdim_fast.model.residual import products, shortcut
from amdim_fast.model.residual.geometry import Geometry
from amdim_fast.nce import tiles, triton_fused, triton_passes
from amdim_fast.nce.pairing import Options, Pairing, Results, Upstream
from amdim_fast.nce.plan import PairingPlan
from amdim_fast.nce.way import PairingShape, padded

# Architectures of the table with tensor descriptors.
DESCRIPTORS = ("sm_90", "sm_100")
TYPES = {
    "half": (torch.float16, torch.bfloat16),
    "tf32": (torch.float32,),
    "ieee": (torch.float32,),
}
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64"}
CLIPS = (20.0, 100.0, None)
SETS, WIDTH = 2, 64
# Locations, and images that make at least one whole tile of every kernel.
SIZES = ((49, 128), (25, 256), (1, 4096))
# Gradients that autograd gives together: of the totals, of losses, or of log-probabilities.
UPSTREAMS = (
    ("totals",),
    ("loss",),
    ("mean_sq",),
    ("log_prob",),
    ("loss", "mean_sq"),
    ("log_prob", "mean_sq"),
)
OPTIONS = ("num_warps", "num_stages")


class Compilation(NamedTuple):
    """A kernel and all that its compiled form depends on.

    Attributes:
        kernel: its name.
        arguments: (parameter, type); a type is "*bf16", "fp32", "i32", "None" or a descriptor's,
            with ":16" for a multiple of 16 and ":1" for the number 1, where that is seen.
        constants: (parameter, value) of constexpr ones.
        warps: per program.
        stages: in flight.
    """

    kernel: str
    arguments: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int

    @property
    def settings(self) -> dict[str, Any]:
        """Everything by name."""
        options = {"kernel": self.kernel, "warps": self.warps, "stages": self.stages}
        return dict(self.arguments) | dict(self.constants) | options


def compilation_of(kernel: Any, arguments: Sequence[Any], constants: dict[str, Any]) -> Compilation:
    """What ``launch.launch`` would compile."""
    given = [name for name in kernel.arg_names if name not in constants]
    plain = getattr(kernel, "kwargs", {}).get("do_not_specialize")
    plain = getattr(kernel, "do_not_specialize", plain) or ()
    types = tuple(
        (name, _type_of(argument, name not in plain))
        for name, argument in zip(given, arguments, strict=True)
    )
    options = {"num_warps": 4, "num_stages": 3} | constants
    fixed = tuple(sorted((n, v) for n, v in constants.items() if n not in OPTIONS))
    return Compilation(kernel.__name__, types, fixed, *(options[name] for name in OPTIONS))


def _type_of(argument: Any, specialized: bool) -> str:
    if argument is None:
        return "None"
    if isinstance(argument, float):
        return "fp32"
    if isinstance(argument, Tensor):
        return f"*{NAMES[argument.dtype]}" + ":16" * (argument.data_ptr() % 16 == 0)
    if isinstance(argument, TensorDescriptor):
        return f"tensordesc<{NAMES[argument.base.dtype]}{list(argument.block_shape)}>"
    assert isinstance(argument, int), argument
    if specialized and argument == 1:
        return "i32:1"
    return "i32" + ":16" * (specialized and argument % 16 == 0)


@contextmanager
def recorded(found: list[Compilation]) -> Iterator[None]:
    """Launches are noted in ``found`` instead of done."""

    def note(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        assert all(size > 0 for size in grid)
        found.append(compilation_of(kernel, arguments, constants))

    with patch.object(launch, "launch", note):
        yield


@contextmanager
def using(tile_set: TileSet, arithmetic: str) -> Iterator[None]:
    """The passes take these tiles and this arithmetic, whatever the device."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(tiles, "choose", lambda *_: tile_set))
        stack.enter_context(patch.object(triton_fused, "arithmetic", lambda _: arithmetic))
        yield


@cache
def compilations(arch: str) -> tuple[Compilation, ...]:
    """Everything that the passes have compiled for an architecture, each once.

    Descriptors are tried wherever the GPU has them, whether or not the table uses them.
    """
    found: list[Compilation] = []
    for (name, arithmetic, _), tile_set in nce_tile_table.TABLE.items():
        if name != arch:
            continue
        for loads, dtype in itertools.product((False, True), TYPES[arithmetic]):
            with using(with_descriptors(tile_set, arch, loads), arithmetic), recorded(found):
                run_passes(dtype, tile_set.fused)
                run_shortcuts(dtype)
    with patch.object(products, "tile_of", lambda _: products.TILES[arch]), recorded(found):
        for dtype in TYPES["half"]:
            run_products(dtype)
    return tuple(dict.fromkeys(found))


def with_descriptors(tile_set: TileSet, arch: str, loads: bool) -> TileSet:
    """The tiles with fused kernels that use descriptors, where there are any, or do not."""
    loads = loads and arch in DESCRIPTORS
    forward, backward = (
        tile._replace(descriptors=loads) for tile in (tile_set.forward, tile_set.backward)
    )
    return tile_set._replace(forward=forward, backward=backward)


def run_passes(dtype: torch.dtype, fused: bool) -> None:
    """Every function of the passes that launches, in every way that a call can."""
    for (locations, images), clip, same_location in itertools.product(SIZES, CLIPS, (False, True)):
        pairing, results = make_pairing(dtype, images, locations, clip, same_location)
        stored = empty(2, padded(images * locations))
        place = {"first_row": 0, "first_image": 0, "images": images}
        triton_passes.statistics(pairing, results, stored, 0)
        objective = Upstream(of_objective=True)
        triton_passes.gradients(
            *(pairing, results, objective, stored), **place, overwrite=True, with_statistics=True
        )
        for upstream in (objective, *upstreams(results, images)):
            for overwrite in (False, True):
                triton_passes.gradients(
                    *(pairing, results, upstream, stored), **place, overwrite=overwrite
                )
            if fused and not same_location:
                prepared = triton_passes.row_gradients(pairing, results, upstream)
        if fused and not same_location:
            triton_passes.fused_statistics(pairing, results)
            triton_passes.fused_gradients(pairing, results, prepared, pairing.trg, 0)
        triton_passes.sum_rows(results, pairing.options, images)
    run_ends(dtype)


def run_ends(dtype: torch.dtype) -> None:
    """What comes before and after the passes over scores."""
    images, locations = 128, 49
    picks = empty(images, dtype=torch.int64)
    for width in (WIDTH, WIDTH + 1):
        src, trg = empty(1, images, width, dtype=dtype), empty(images, locations, width).to(dtype)
        other_layout = empty(width, images, 1, dtype=dtype).permute(2, 1, 0)
        channels_first = empty(images, width, locations, dtype=dtype).transpose(1, 2)
        for sources, targets in itertools.product((src, other_layout), (trg, channels_first)):
            triton_passes.stack(sources, targets, picks)
        part, drawn = empty(images, width), empty(2 * images, width)
        # Gradients of the objective of float16 features are float32.
        for of_src, of_trg in ((src, trg), (src.float(), trg.float())):
            triton_passes.finish_sources(part, of_src, None, None)
            triton_passes.finish_sources(drawn, of_src, of_trg, picks)
            triton_passes.finish_sources(drawn, of_src, None, picks)
            triton_passes.finish_sources(drawn, None, of_trg, picks)
    if dtype != torch.float16:
        triton_passes.scale(empty(1024, dtype=dtype), empty())


def run_shortcuts(dtype: torch.dtype) -> None:
    """Shortcuts of strided residual layers, on maps whose channels are aligned or are not."""
    for kernel, stride, channels in itertools.product((2, 3, 4), (1, 2), (64, 66)):
        geometry = Geometry(2, 17, 17, channels, 2 * channels, kernel, stride)
        x, out = empty(2, 17, 17, channels, dtype=dtype), empty(*geometry.out_shape, dtype=dtype)
        shortcut.shortcut(x, out, out, geometry)
        shortcut.add_shortcut_gradient(x, out, geometry)


def run_products(dtype: torch.dtype) -> None:
    """Products of 1x1 residual layers: the second one, and both of a backward."""
    matrix, weight = empty(1024, WIDTH, dtype=dtype), empty(WIDTH, WIDTH, dtype=dtype)
    for b, epilogue in (
        (weight.t(), products.ADD),
        (weight, products.ADD),
        (weight, products.MASK),
    ):
        products.product(matrix, b, matrix, epilogue)


def make_pairing(
    dtype: torch.dtype, images: int, locations: int, clip: float | None, same_location: bool
) -> tuple[Pairing, Results]:
    """A pairing of two source sets, and room for its results."""
    rows = SETS * images
    pairing = Pairing(
        empty(rows, WIDTH, dtype=dtype),
        empty(images, locations, WIDTH, dtype=dtype),
        PairingShape(SETS, images, images, locations, WIDTH),
        PairingPlan("", 0, images, 0, 0, 0, ""),
        Options(clip, same_location, False, 1, 1.0, 1.0),
        *(0, 0, 0),
    )
    sums = rows * (locations if same_location else 1)
    sizes = (rows * locations, rows * locations, sums, rows, rows)
    return pairing, Results(*(empty(size) for size in sizes))


def upstreams(results: Results, images: int) -> Iterator[Upstream]:
    """Gradients of the results in every combination that occurs."""
    sets = len(results.row_loss) // images
    rooms = {
        "totals": empty(2),
        "loss": empty(sets),
        "mean_sq": empty(sets),
        "log_prob": empty(len(results.score)),
    }
    for names in UPSTREAMS:
        yield Upstream(**{name: rooms[name] for name in names})


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")
