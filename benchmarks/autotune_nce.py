"""Measure tiles of the contrastive kernels on this GPU and write the fastest to the tile file.

    python -m benchmarks.autotune_nce --file blocks.json --dtype bfloat16 --width 2048
    export AMDIM_FAST_BLOCKS=$PWD/blocks.json

Every candidate is compared with the float64 reference before it is timed, and every timing is a row
of ``benchmarks/results/tuning.jsonl``. Nothing tunes at import or in a training step.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from amdim_fast.kernels import nce_tile_table
from amdim_fast.kernels.nce_tiles import SMALL_WIDTH, Tile, TileSet, arithmetic
from torch import Tensor

from amdim_fast.nce import tiles
from amdim_fast.nce import triton_backend as nce_triton
from amdim_fast.nce.plan import DEFAULT_MEMORY_BUDGET, plan_pairings
from amdim_fast.nce.reference import nce_log_prob
from amdim_fast.nce.tile_file import VARIABLE, Key, read_file, write_row
from amdim_fast.nce.torch_backend import Pairing
from benchmarks import harness
from benchmarks.tuning_candidates import fused_tiles, read_tiles

CLIP = 10.0
FIELDS = ("forward", "read_forward", "backward", "read_backward")
# Off the tiles, so that every mask is used.
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
    """A pairing that keeps nothing, and upstream gradients of its log_prob and mean_sq."""

    pairing: Pairing
    upstream: tuple[Tensor, Tensor]


def make_features(case: Case) -> Features:
    """Standard normal features, the same at every call."""
    generator = torch.Generator(case.device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=case.device, dtype=dtype)

    src = normal(1, case.images, case.width, dtype=case.dtype)
    trg = normal(case.images, case.locations, case.width, dtype=case.dtype)
    rule = nce_triton.work_rule(case.dtype, src.device, case.width, False)
    (plan,) = plan_pairings(
        [(case.images, case.images, case.locations)],
        rule,
        memory_budget=DEFAULT_MEMORY_BUDGET,
        with_grad=True,
    )
    plan = dataclasses.replace(plan, mode="recompute", kept_bytes=0)
    upstream = (normal(1, case.images, case.locations), normal(1))
    return Features(Pairing(src, trg, CLIP, False, plan), upstream)


@contextmanager
def using(tile_set: TileSet) -> Iterator[None]:
    """The kernels use these tiles, whatever the table says."""
    choose = tiles.choose
    tiles.choose = lambda *_: tile_set
    try:
        yield
    finally:
        tiles.choose = choose


def run_forward(tile_set: TileSet, features: Features) -> list[Tensor]:
    """Own scores, log-sums and mean_sq."""
    with using(tile_set), torch.no_grad():
        return list(nce_triton.forward(features.pairing)[:3])


def run_backward(tile_set: TileSet, features: Features, score: Tensor, neg: Tensor) -> list[Tensor]:
    """Gradients of src and trg."""
    with using(tile_set), torch.no_grad():
        grads = nce_triton.backward(
            *(features.pairing, [], score, neg, *features.upstream), need_src=True, need_trg=True
        )
    return [grad for grad in grads if grad is not None]


def expected_results(features: Features) -> list[Tensor]:
    """Own scores, log_prob, mean_sq and both gradients of the reference in float64."""
    wide = [t.double().requires_grad_() for t in (features.pairing.src, features.pairing.trg)]
    output = nce_log_prob(*wide, clip=CLIP)
    objective = (output.log_prob * features.upstream[0]).sum()
    objective = objective + (output.mean_sq * features.upstream[1]).sum()
    grads = torch.autograd.grad(objective, wide)
    return [t.detach() for t in (output.score, output.log_prob, output.mean_sq, *grads)]


def fault(tile_set: TileSet, features: Features, expected: Sequence[Tensor]) -> str | None:
    """Why these tiles must not be timed, or None."""
    try:
        score, neg, mean_sq = run_forward(tile_set, features)
        grads = run_backward(tile_set, features, score, neg)
    except (triton.OutOfResources, triton.CompilationError) as error:
        return f"does not launch ({str(error).splitlines()[0]})"
    log_prob = -torch.nn.functional.softplus(neg - score)
    difference = harness.largest_difference([score, log_prob, mean_sq, *grads], expected)
    allowed = TOLERANCE[arithmetic(features.pairing.src.dtype)]
    if difference <= allowed:
        return None
    return f"is {difference:.1e} from the reference, {allowed:.0e} allowed"


def tune(
    case: Case,
    start: TileSet,
    candidates: Mapping[str, Sequence[Tile]],
    measure: harness.Stopwatch,
    record: Callable[[str, str, Sequence[float]], None],
) -> TileSet:
    """The fastest tile of each kernel, then whether fused or elementwise.

    Args:
        case: sizes, type and repeats.
        start: tiles of the kernels that are not yet tuned.
        candidates: field of TileSet -> tiles.
        measure: milliseconds of a call.
        record: takes the field, the candidate and its samples.

    Raises:
        RuntimeError: no candidate of a field is right.
    """
    small = make_features(case._replace(images=CHECKED_IMAGES, locations=CHECKED_LOCATIONS))
    expected = expected_results(small)
    features = make_features(case)
    best = start
    score, neg, _ = run_forward(start, features)

    def call(field: str, tile_set: TileSet) -> Callable[[], object]:
        if field.endswith("forward"):
            return lambda: run_forward(tile_set, features)
        return lambda: run_backward(tile_set, features, score, neg)

    def fastest(field: str, choices: Mapping[str, Callable[[], object]]) -> str:
        samples = harness.time_interleaved(
            choices, repeats=case.repeats, warm_ups=case.warm_ups, measure=measure
        )
        for name, times in samples.items():
            record(field, name, times)
        return min(samples, key=lambda name: harness.quantiles(samples[name])[1])

    for field in FIELDS:
        right = {}
        for tile in candidates[field]:
            tile_set = best._replace(**{"fused": not field.startswith("read"), field: tile})
            wrong = fault(tile_set, small, expected)
            if wrong:
                print(f"  {field} {describe(tile)} {wrong}; left out")
            else:
                right[describe(tile)] = tile_set
        if not right:
            raise RuntimeError(f"no candidate for {field} is right on this GPU")
        name = fastest(field, {name: call(field, tile_set) for name, tile_set in right.items()})
        best = best._replace(**{field: getattr(right[name], field)})

    ways = {name: best._replace(fused=name == "fused") for name in ("fused", "elementwise")}

    def both(tile_set: TileSet) -> Callable[[], object]:
        return lambda: (
            run_forward(tile_set, features),
            run_backward(tile_set, features, score, neg),
        )

    return ways[fastest("forward + backward", {name: both(b) for name, b in ways.items()})]


def describe(tile: Tile) -> str:
    """All fields of a tile in one line."""
    return ", ".join(f"{name} {value}" for name, value in tile._asdict().items())


def candidates_of(
    dtype: torch.dtype, capability: tuple[int, int], start: TileSet
) -> dict[str, list[Tile]]:
    """What is tried on a GPU of this capability, the tiles of the built-in row first."""
    architecture = nce_tile_table.ARCHITECTURES.get(capability, "default")
    fused = fused_tiles(dtype.itemsize, capability, nce_tile_table.SHARED_BYTES[architecture])
    tiles = {field: read_tiles(field) if "read" in field else fused for field in FIELDS}
    return {field: list(dict.fromkeys([getattr(start, field), *tiles[field]])) for field in FIELDS}


def main(arguments: list[str] | None = None) -> int:
    """Tune for one type and width; 2 without a GPU or with an unusable file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--file", type=Path, help=f"rows go here; default: what {VARIABLE} names")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--tf32", action="store_true", help="allow tf32 products of float32")
    parser.add_argument("--width", type=int, default=2048, help="D")
    parser.add_argument("--images", type=int, default=1024, help="B")
    parser.add_argument("--locations", type=int, default=49, help="L")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "tuning.jsonl")
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
    case = Case(*sizes, dtype, "cuda", options.repeats, 3)
    capability = torch.cuda.get_device_capability()
    key = Key(
        nce_tile_table.architecture_of(capability), arithmetic(dtype), options.width <= SMALL_WIDTH
    )
    device = harness.device_name("cuda")
    shapes = dict(zip("BLD", sizes, strict=True))

    def record(field: str, candidate: str, times: Sequence[float]) -> None:
        name = f"{key.architecture}-{key.arithmetic}"
        condition = harness.Condition("tuning", name, candidate, field, shapes, options.dtype)
        row = harness.make_row(condition, "time", "ms", times, device=device)
        harness.append_row(row, options.out)
        print(f"  {field} {candidate}: {row['q50']:.3f} ms", flush=True)

    start = nce_tile_table.built_in(capability, dtype, options.width)
    best = tune(
        case, start, candidates_of(dtype, capability, start), harness.stopwatch("cuda"), record
    )
    write_row(file, key, best, {"device": device, "versions": harness.versions(), **shapes})
    print(
        f"row for {', '.join(map(str, key))} in {file}: {best}\nexport {VARIABLE}={file.resolve()}"
    )
    return 0


def _obstacle(file: Path | None) -> str | None:
    """Why nothing can be tuned, in one sentence, or None."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device here; tiles are measured on the GPU they are for"
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
