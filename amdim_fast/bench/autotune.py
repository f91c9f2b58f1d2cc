"""Measure tiles of the contrastive kernels on this GPU and write the fastest into a file.

    python -m amdim_fast.bench.autotune --file tiles.json --dtype bfloat16 --width 2048
    export AMDIM_FAST_BLOCKS=$PWD/tiles.json

Every candidate is compared with the float64 reference before it is timed. Nothing is tuned at
import or in a training step.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amdim_fast.bench.measure import (
    Stopwatch,
    device_name,
    largest_difference,
    quantiles,
    stopwatch,
    time_interleaved,
    versions,
)
from amdim_fast.kernels import nce_tile_table
from amdim_fast.kernels.nce_layout import DESCRIPTOR_CAPABILITY
from amdim_fast.kernels.nce_tiles import SMALL_WIDTH, Tile, TileSet, arithmetic
from amdim_fast.nce import reference, tiles
from amdim_fast.nce.functional import nce_log_prob
from amdim_fast.nce.plan import DEFAULT_MEMORY_BUDGET
from amdim_fast.nce.tile_file import VARIABLE, Key, read_file, write_row

CLIP = 10.0
FIELDS = ("forward", "read_forward", "backward", "read_backward")
# Not multiples of the tiles, so that every mask is used.
CHECKED_IMAGES, CHECKED_LOCATIONS = 70, 9
# Largest difference from float64, relative to each tensor's largest value; one rounding of a tf32
# or half product, accumulated, is worth a hundredth of these, a wrong mask much more.
TOLERANCE = {"half": 3e-2, "tf32": 1e-2, "ieee": 1e-4}

AREAS = ((64, 128), (128, 64), (128, 128), (64, 256), (128, 256))
READ_AREAS = {
    "read_forward": ((8, 256), (16, 128), (16, 256), (32, 128), (32, 256)),
    "read_backward": ((4, 512), (8, 256), (8, 512), (16, 256), (16, 512)),
}
# Features of a step by bytes of one: 64 and 128 bytes a row.
WIDTHS = {2: (32, 64), 4: (16, 32)}
WARPS, STAGES, SWIZZLE = (4, 8), (3, 4), 8
# Products a thread holds: of its 255 registers at most half, since the epilogue needs the others.
PRODUCTS, THREADS_PER_WARP = (32, 128), 32


def shared_bytes(tile: Tile, itemsize: int) -> int:
    """Shared memory of the steps in flight; the compiler takes a few bytes more at most."""
    return tile.stages * (tile.rows + tile.columns) * tile.width * itemsize


def fused_tiles(itemsize: int, capability: tuple[int, int], shared_limit: int) -> list[Tile]:
    """Tiles that compute products and fit the shared memory and the registers of a program."""
    loads = (False, True) if capability >= DESCRIPTOR_CAPABILITY else (False,)
    found = (
        Tile(*area, width, SWIZZLE, warps, stages, descriptors)
        for area, width, warps, stages, descriptors in product(
            AREAS, WIDTHS[itemsize], WARPS, STAGES, loads
        )
        if PRODUCTS[0] <= area[0] * area[1] // (warps * THREADS_PER_WARP) <= PRODUCTS[1]
    )
    return [tile for tile in found if shared_bytes(tile, itemsize) <= shared_limit]


def read_tiles(field: str) -> list[Tile]:
    """Tiles of "read_forward" or "read_backward"."""
    return [Tile(*area, 0, SWIZZLE, warps, 1) for area, warps in product(READ_AREAS[field], WARPS)]


def candidates_of(
    dtype: torch.dtype, capability: tuple[int, int], start: TileSet
) -> dict[str, list[Tile]]:
    """What is tried on a GPU of this capability, by field, the tiles of the built-in row first."""
    architecture = nce_tile_table.ARCHITECTURES.get(capability, "default")
    limit = nce_tile_table.SHARED_BYTES[architecture]
    fused = fused_tiles(dtype.itemsize, capability, limit)
    tried = {field: read_tiles(field) if field in READ_AREAS else fused for field in FIELDS}
    return {field: list(dict.fromkeys([getattr(start, field), *tried[field]])) for field in FIELDS}


class Case(NamedTuple):
    """What is tuned for, and how often each candidate is timed."""

    images: int
    locations: int
    width: int
    dtype: torch.dtype
    device: str
    repeats: int
    warm_ups: int


class Features(NamedTuple):
    """Sources [B, D], targets [B, L, D], and upstream gradients of log_prob and mean_sq."""

    src: Tensor
    trg: Tensor
    upstream: tuple[Tensor, Tensor]


def make_features(case: Case) -> Features:
    """Standard normal features, the same at every call."""
    generator = torch.Generator(case.device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=case.device)
    src = normal(case.images, case.width, dtype=case.dtype)
    trg = normal(case.images, case.locations, case.width, dtype=case.dtype)
    upstream = (normal(case.images, case.locations), normal(()))
    return Features(src.requires_grad_(), trg.requires_grad_(), upstream)


def evaluate(function: Callable[..., Any], features: Features, **options: Any) -> list[Tensor]:
    """Score, log_prob, mean_sq and, unless gradients are off, those of sources and targets."""
    output = function(features.src, features.trg, clip=CLIP, **options)
    found = [output.score, output.log_prob, output.mean_sq]
    if torch.is_grad_enabled():
        objective = (output.log_prob * features.upstream[0]).sum()
        objective = objective + output.mean_sq * features.upstream[1]
        found += torch.autograd.grad(objective, (features.src, features.trg))
    return [tensor.detach() for tensor in found]


@contextmanager
def using(tile_set: TileSet) -> Iterator[None]:
    """Make the kernels use these tiles, whatever the table says."""
    before = tiles.choose
    tiles.choose = lambda *_: tile_set
    try:
        yield
    finally:
        tiles.choose = before


def run(tile_set: TileSet, features: Features) -> list[Tensor]:
    """``evaluate`` the kernels with these tiles, and a budget too small to keep scores."""
    images, locations, _ = features.trg.shape
    scores = images * images * locations * features.src.element_size()
    budget = min(DEFAULT_MEMORY_BUDGET, scores // 2)
    with using(tile_set):
        return evaluate(nce_log_prob, features, backend="triton", memory_budget=budget)


def fault(tile_set: TileSet, features: Features, expected: Sequence[Tensor]) -> str | None:
    """Why these tiles must not be timed, or None."""
    from amdim_fast.kernels.nce_forward import triton

    try:
        difference = largest_difference(run(tile_set, features), expected)
    except (triton.OutOfResources, triton.CompilationError) as error:
        return f"does not launch ({str(error).splitlines()[0]})"
    allowed = TOLERANCE[arithmetic(features.src.dtype)]
    if difference <= allowed:
        return None
    return f"is {difference:.1e} from the reference, {allowed:.0e} allowed"


def tune(
    case: Case,
    start: TileSet,
    candidates: Mapping[str, Sequence[Tile]],
    measure: Stopwatch,
    record: Callable[[str, str, Sequence[float]], None],
) -> TileSet:
    """The fastest tile of each kernel, then whether the kernels compute the products.

    Args:
        case: sizes, type and repeats.
        start: tiles of the kernels that are not yet tuned.
        candidates: field of TileSet -> tiles. Those of a backward are timed with the best forward.
        measure: milliseconds of a call.
        record: takes the field, the candidate and its samples.

    Raises:
        RuntimeError: no candidate of a field gives right results.
    """
    small = make_features(case._replace(images=CHECKED_IMAGES, locations=CHECKED_LOCATIONS))
    wide = small._replace(src=_double(small.src), trg=_double(small.trg))
    expected = evaluate(reference.nce_log_prob, wide)
    features = make_features(case)

    def call(field: str, tile_set: TileSet) -> None:
        with torch.set_grad_enabled("backward" in field):
            run(tile_set, features)

    def fastest(field: str, choices: Mapping[str, TileSet]) -> TileSet:
        samples = time_interleaved(
            {name: partial(call, field, tile_set) for name, tile_set in choices.items()},
            repeats=case.repeats,
            warm_ups=case.warm_ups,
            measure=measure,
        )
        for name, times in samples.items():
            record(field, name, times)
        return choices[min(samples, key=lambda name: quantiles(samples[name])[1])]

    best = start
    for field in FIELDS:
        right = {}
        for tile in candidates[field]:
            tile_set = best._replace(**{"fused": field not in READ_AREAS, field: tile})
            wrong = fault(tile_set, small, expected)
            if wrong:
                print(f"  {field} {describe(tile)} {wrong}; left out")
            else:
                right[describe(tile)] = tile_set
        if not right:
            raise RuntimeError(f"no candidate for {field} gives right results on this GPU")
        best = fastest(field, right)
    ways = {name: best._replace(fused=name == "fused") for name in ("fused", "elementwise")}
    return fastest("forward + backward", ways)


def _double(features: Tensor) -> Tensor:
    return features.detach().double().requires_grad_()


def describe(tile: Tile) -> str:
    """All fields of a tile in one line."""
    return ", ".join(f"{name} {value}" for name, value in tile._asdict().items())


def main(arguments: list[str] | None = None) -> int:
    """Tune for one type and width; 2 without a GPU or with an unusable file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--file", type=Path, help=f"for the row; default: what {VARIABLE} names")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--tf32", action="store_true", help="allow tf32 products of float32")
    parser.add_argument("--width", type=int, default=2048, help="D")
    parser.add_argument("--images", type=int, default=1024, help="B")
    parser.add_argument("--locations", type=int, default=49, help="L")
    parser.add_argument("--repeats", type=int, default=20, help="samples of each candidate")
    options = parser.parse_args(arguments)
    file = options.file or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    obstacle = _obstacle(file)
    if obstacle is not None or file is None:
        print(obstacle, file=sys.stderr)
        return 2
    if options.tf32:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    dtype = getattr(torch, options.dtype)
    sizes = (options.images, options.locations, options.width)
    capability = torch.cuda.get_device_capability()
    architecture = nce_tile_table.architecture_of(capability)
    key = Key(architecture, arithmetic(dtype), options.width <= SMALL_WIDTH)

    def show(field: str, candidate: str, times: Sequence[float]) -> None:
        print(f"  {field} {candidate}: {quantiles(times)[1]:.3f} ms", flush=True)

    start = nce_tile_table.built_in(capability, dtype, options.width)
    candidates = candidates_of(dtype, capability, start)
    case = Case(*sizes, dtype, "cuda", options.repeats, warm_ups=3)
    best = tune(case, start, candidates, stopwatch("cuda"), show)
    shapes = dict(zip("BLD", sizes, strict=True))
    write_row(file, key, best, {"device": device_name("cuda"), "versions": versions(), **shapes})
    print(f"row for {', '.join(map(str, key))} in {file}: {best}")
    print(f"export {VARIABLE}={file.resolve()}")
    return 0


def _obstacle(file: Path | None) -> str | None:
    """Why nothing can be tuned, in one sentence, or None."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device here; tiles must be measured on the GPU that uses them"
    if file is None:
        return f"no file for the row is named; give --file or set {VARIABLE}"
    try:
        if file.exists():
            read_file(file)
    except ValueError as error:
        return f"{error}; correct or remove it"
    return None


if __name__ == "__main__":
    sys.exit(main())
