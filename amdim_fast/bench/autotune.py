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
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amdim_fast.bench.candidates import FIELDS, candidates_of, is_read
from amdim_fast.bench.measure import (
    Stopwatch,
    largest_difference,
    quantiles,
    stopwatch,
    time_interleaved,
    versions,
)
from amdim_fast.devices import device_name
from amdim_fast.kernels import nce_tile_table
from amdim_fast.kernels.nce_tiles import SMALL_WIDTH, Tile, TileSet, arithmetic
from amdim_fast.nce import reference, tiles
from amdim_fast.nce.functional import nce_log_prob, nce_objective
from amdim_fast.nce.plan import DEFAULT_MEMORY_BUDGET
from amdim_fast.nce.tile_file import VARIABLE, Key, read_file, write_row

CLIP, WEIGHT = 10.0, 0.5
# Not multiples of the tiles, so that every mask is used.
CHECKED_IMAGES, CHECKED_LOCATIONS = 70, 9
# Largest difference from float64, relative to each tensor's largest value; one rounding of a tf32
# or half product, accumulated, is worth a hundredth of these, a wrong mask much more.
TOLERANCE = {"half": 3e-2, "tf32": 1e-2, "ieee": 1e-4}


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


def gradients(objective: Tensor, features: Features) -> list[Tensor]:
    """An objective and its gradients."""
    return [objective.detach(), *torch.autograd.grad(objective, (features.src, features.trg))]


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


def run_one_pass(tile_set: TileSet, features: Features) -> list[Tensor]:
    """The objective with its gradients, as training calls it: sums and gradients of stored rows."""
    with using(tile_set):
        found = nce_objective(
            features.src, features.trg, mean_sq_weight=WEIGHT, clip=CLIP, backend="triton"
        )
        return gradients(found.objective, features)


def truth(features: Features) -> list[Tensor]:
    """What ``run`` and ``run_one_pass`` give, by the reference in float64."""
    wide = features._replace(src=_double(features.src), trg=_double(features.trg))
    loss, mean_sq = reference.nce_loss(wide.src, wide.trg, clip=CLIP)
    general = evaluate(reference.nce_log_prob, wide)
    return [*general, *gradients(loss + WEIGHT * mean_sq, wide)]


def fault(tile_set: TileSet, features: Features, expected: Sequence[Tensor]) -> str | None:
    """Why these tiles must not be timed, or None."""
    from amdim_fast.kernels.nce_forward import triton

    try:
        found = [*run(tile_set, features), *run_one_pass(tile_set, features)]
        difference = largest_difference(found, expected)
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
    expected = truth(small)
    features = make_features(case)

    def call(field: str, tile_set: TileSet) -> None:
        with torch.set_grad_enabled("backward" in field):
            (run_one_pass if field == "read_backward" else run)(tile_set, features)

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
            tile_set = best._replace(**{"fused": not is_read(field), field: tile})
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
