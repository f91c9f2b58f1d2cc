"""Bytes that the loss moves and holds on each rank in a step: calculated, not measured.

    python -m benchmarks.traffic                          the table of docs/large_batches.md
    python -m benchmarks.traffic --world-size 16 --images 32 --width 2048 --dtype bfloat16

Two schemes: ours, which gathers sources and leaves targets where they are, and gathering targets.
``tests/benchmarks/test_traffic.py`` counts what ours really moves.
"""

from __future__ import annotations

import argparse
import sys
from functools import lru_cache
from typing import NamedTuple

import torch

from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.step import build_model
from benchmarks.report.rows import quantity, table

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
# Scores, log-sums and gradients of sources are float32; what ranks agree on is three int64.
SUM_BYTES, AGREEMENT_BYTES = 4, 24
RECIPE = RECIPES["imagenet128"]
# World size and images per rank: the recipe's batch on 1 and 8, then 64 images per GPU.
CASES = ((1, 480), (8, 60), (64, 64), (1024, 64))


class Costs(NamedTuple):
    """What a loss compares."""

    sources: int  # features [B, D] that predict, each counted once however many maps it predicts
    locations: tuple[int, ...]  # L of the map that each cost predicts
    maps: tuple[int, ...]  # L of each map, counted once however many costs predict it


# Of each view: r1 and a location of r5 predict 5x5, r1 predicts 7x7.
SIX_COSTS = Costs(4, (25, 25, 49) * 2, (25, 49) * 2)


class Traffic(NamedTuple):
    """Bytes of one rank in one step, forward and backward."""

    moved: int  # received of the other ranks; it sends as much
    held: int  # from forward to backward, beyond own features and what ``memory_budget`` keeps


def of_sources(world: int, images: int, width: int, dtype: str, costs: Costs) -> Traffic:
    """Sources gathered, targets where they are: what ``group=`` does; ``images`` are a rank's."""
    scores, sums = sum(costs.locations), len(costs.locations)
    features = costs.sources * width
    forward = features * ITEMSIZE[dtype] + (2 * sums + scores) * SUM_BYTES
    backward = (scores + features) * SUM_BYTES
    fixed = 2 * sums * SUM_BYTES + AGREEMENT_BYTES
    # Of every rank's rows log-sums and squares too; own scores are held twice.
    every = features * ITEMSIZE[dtype] + (scores + 2 * sums) * SUM_BYTES
    held = images * (world * every + scores * SUM_BYTES)
    moved = (world - 1) * (images * (forward + backward) + fixed)
    return Traffic(moved, held if world > 1 else 0)


def of_targets(world: int, images: int, width: int, dtype: str, costs: Costs) -> Traffic:
    """Targets gathered in the forward, their gradients reduce-scattered in the backward.

    A lower bound: gradients travel in the features' type, and nothing else is counted.
    """
    every = images * sum(costs.maps) * width * ITEMSIZE[dtype]
    return Traffic((world - 1) * 2 * every, world * every if world > 1 else 0)


@lru_cache
def parameters(recipe: Recipe) -> int:
    """Of the encoder, its heads for local features included."""
    with torch.device("meta"):
        encoder = build_model(recipe, None).encoder
    return sum(parameter.numel() for parameter in encoder.parameters())


def _line(world: int, images: int, width: int, dtype: str) -> list[str]:
    ours, theirs = (
        scheme(world, images, width, dtype, SIX_COSTS) for scheme in (of_sources, of_targets)
    )
    # Of the encoder's gradients, one ring all-reduce in float32.
    encoder = 2 * (world - 1) * parameters(RECIPE) * SUM_BYTES // world
    sizes = [ours.moved, theirs.moved, encoder, ours.held, theirs.held]
    shown = [quantity(size, "bytes") if size else "0" for size in sizes]
    return [f"{world:,}", f"{world * images:,}", *shown]


def traffic_table(
    cases: tuple[tuple[int, int], ...] = CASES, width: int = RECIPE.n_rkhs, dtype: str = "bfloat16"
) -> str:
    """A line for each world size and number of images per rank."""
    header = ["GPUs", "batch", "moved, ours", "moved, gathering targets"]
    header += ["moved, encoder's gradients", "held, ours", "held, gathering targets"]
    said = (
        f"Calculated, not measured: bytes that each GPU receives, and as many that it sends, in a"
        f" step, and holds from forward to backward beyond its own features. Six costs,"
        f" D = {width}, L = 25 and 49, {dtype}; encoder of {RECIPE.name}, its gradients in float32."
    )
    return table(header, [_line(*case, width, dtype) for case in cases]) + f"\n\n{said}"


def main(arguments: list[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--world-size", type=int, help="GPUs; the cases of the docs if not given")
    parser.add_argument("--images", type=int, default=64, help="B of one GPU")
    parser.add_argument("--width", type=int, default=RECIPE.n_rkhs, help="D")
    parser.add_argument("--dtype", choices=ITEMSIZE, default="bfloat16", help="of the features")
    given = parser.parse_args(arguments)
    cases = ((given.world_size, given.images),) if given.world_size else CASES
    print(traffic_table(cases, given.width, given.dtype))
    return 0


if __name__ == "__main__":
    sys.exit(main())
