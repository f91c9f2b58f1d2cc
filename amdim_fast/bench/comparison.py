"""Our loss against the reference on this machine: time, memory and the largest batch that fits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from amdim_fast.bench.inputs import (
    MAP_SIDES,
    Losses,
    forward_backward,
    make_inputs,
    our_losses,
    planned_bytes,
    reference_losses,
)
from amdim_fast.bench.measure import (
    LEAST_ROUNDS,
    allocated_peak,
    free_memory,
    largest_difference,
    quantiles,
    stopwatch,
    time_interleaved,
    versions,
)
from amdim_fast.devices import device_name
from amdim_fast.nce.plan import Plan, last_plan

OURS, REFERENCE = "amdim_fast", "reference"
FIRST, LAST = 32, 1 << 20  # images
ROUNDS = 15
# Cost of twice the batch: a warm-up, a call for memory and the fewest rounds, at three times the
# time of a call now.
GROWTH = 3 * (LEAST_ROUNDS + 2)
SHARE = 0.8  # of the free memory, for a size to be tried
# Largest difference, relative to each tensor's largest value; a wrong mask or scale makes 1e-2.
TOLERANCE = 1e-4
MEMORY = "bytes of torch's allocator at the peak of forward and backward, less inputs and gradients"

LOSSES: dict[str, Losses] = {OURS: our_losses(), REFERENCE: reference_losses}


class Measurement(NamedTuple):
    """One provider at one size.

    Attributes:
        images: B.
        provider: "amdim_fast" or "reference".
        milliseconds: q20, q50 and q80 of forward + backward.
        rounds: number of samples.
        extra_bytes: at the peak, beside inputs and gradients.
        plan: how our loss spent its memory; None for the reference.
    """

    images: int
    provider: str
    milliseconds: tuple[float, float, float]
    rounds: int
    extra_bytes: int
    plan: Plan | None


class Comparison(NamedTuple):
    """The result; ``facts`` are ready for JSON, ``largest`` is the B that fits ``free`` bytes."""

    facts: dict[str, Any]
    measurements: list[Measurement]
    free: int | None
    largest: dict[str, int]


def compare(
    device: torch.device,
    dim: int,
    seconds: float,
    report: Callable[[Measurement], None] = lambda measurement: None,
) -> Comparison:
    """Measure forward and backward of the multiscale loss at 32, 64, ... images, float32.

    First the values and gradients of both are compared. Then the batch doubles as long as the next
    one is expected to end within ``seconds`` and to fit in 0.8 of the free memory. Either loss may
    go on without the other; ours is given time first. The smallest batch is always measured.

    Args:
        device: CPU or CUDA.
        dim: D.
        seconds: for the whole comparison.
        report: called with each measurement as soon as it is made.

    Raises:
        ValueError: an argument is out of range, or the smallest batch does not fit.
        ArithmeticError: ours disagrees with the reference.
    """
    started = time.monotonic()
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is '{device}'; time and memory are measured on cpu and cuda")
    if dim < 1:
        raise ValueError(f"dim is {dim}; it must be 1 or more")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds}; it must be a finite number above 0")
    free = free_memory(device.type)
    if free is not None and feature_bytes(FIRST, dim) > SHARE * free:
        raise ValueError(
            f"dim is {dim}; inputs and gradients of {FIRST} images of that width do not fit in"
            f" {SHARE:g} of the {free / 1e9:.1f} GB that are free on {device}"
        )
    difference = _checked_difference(device, dim)
    measure = stopwatch(device.type)
    found: list[Measurement] = []
    images, running = FIRST, [OURS, REFERENCE]
    while running and images <= LAST:
        left = seconds - (time.monotonic() - started)
        made = _measure(images, dim, device, running, left / 6, measure)
        found += made
        for measurement in made:
            report(measurement)
        images *= 2
        left = seconds - (time.monotonic() - started)
        limit = math.inf if free is None else SHARE * free
        running = [
            p for p in running if expected_bytes(_of(p, found), dim, device, images) <= limit
        ]
        running = _affordable([m for m in made if m.provider in running], left)
    plan = next(m.plan for m in found if m.plan is not None)
    facts = {
        "device": device_name(device.type),
        "versions": versions(),
        "backend": plan.backend,
        "products": plan.products,
        "D": dim,
        "L": [side**2 for side in MAP_SIDES[1:]],
        "dtype": "float32",
        "largest_relative_difference": difference,
        "extra_memory": MEMORY,
    }
    largest = {}
    if free is not None:
        for provider in (OURS, REFERENCE):
            needed = partial(expected_bytes, _of(provider, found), dim, device)
            largest[provider] = largest_batch(needed, free)
    return Comparison(facts, found, free, largest)


def feature_bytes(images: int, dim: int) -> int:
    """Bytes of the six float32 maps and of their gradients."""
    return 2 * 2 * 4 * images * dim * sum(side**2 for side in MAP_SIDES)


def expected_bytes(rows: Sequence[Measurement], dim: int, device: torch.device, images: int) -> int:
    """Bytes at the peak for another batch, inputs included, calculated from one provider's rows.

    The reference's peak is taken to be a B + c B squared through its last two rows, or c B squared
    through its only one. Ours is taken to be what the plan of that batch has at its worst moment,
    inputs and gradients, and for each image whatever else the last row had.
    """
    last = rows[-1]
    features = feature_bytes(images, dim)
    if last.plan is not None:
        rest = max(0, last.extra_bytes - last.plan.peak_bytes)
        planned = planned_bytes(images, dim, device, torch.float32)
        return features + planned + math.ceil(rest * images / last.images)
    gradient = feature_bytes(1, dim) / 2
    (b0, y0), (b1, y1) = (
        [(0, 0.0)] + [(row.images, row.extra_bytes / row.images + gradient) for row in rows]
    )[-2:]
    slope = max(0.0, (y1 - y0) / (b1 - b0))
    return features // 2 + math.ceil(images * max(gradient, y1 + slope * (images - b1)))


def largest_batch(needed: Callable[[int], int], free: int) -> int:
    """The largest B for which ``needed(B)``, which grows with B, is at most ``free``; or 0."""
    low, high = 0, 1
    while needed(high) <= free:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= free else (low, middle)
    return low


def _of(provider: str, found: Sequence[Measurement]) -> list[Measurement]:
    return [measurement for measurement in found if measurement.provider == provider]


def _affordable(made: Sequence[Measurement], seconds: float) -> list[str]:
    """Providers for which there is time to measure twice the batch, ours first."""
    kept = []
    for measurement in made:
        cost = GROWTH * measurement.milliseconds[1] / 1e3
        if cost <= seconds:
            kept.append(measurement.provider)
            seconds -= cost
    return kept


def _measure(
    images: int,
    dim: int,
    device: torch.device,
    providers: list[str],
    seconds: float,
    measure: Callable[[Callable[[], object]], float],
) -> list[Measurement]:
    inputs = make_inputs(images, dim, device)
    calls: Mapping[str, Callable[[], object]] = {
        provider: partial(forward_backward, LOSSES[provider], inputs) for provider in providers
    }
    samples = time_interleaved(
        calls, repeats=ROUNDS, warm_ups=1, measure=measure, seconds=max(0.0, seconds)
    )
    return [
        Measurement(
            images,
            provider,
            quantiles(samples[provider]),
            len(samples[provider]),
            allocated_peak(call, device.type) - inputs.nbytes,
            last_plan() if provider == OURS else None,
        )
        for provider, call in calls.items()
    ]


def _checked_difference(device: torch.device, dim: int) -> float:
    """Largest difference of ours from the reference; ArithmeticError if it is too large."""
    inputs = make_inputs(FIRST, dim, device)
    expected = forward_backward(LOSSES[REFERENCE], inputs)
    ours = (LOSSES[OURS], our_losses(objective=False))
    worst = max(largest_difference(forward_backward(loss, inputs), expected) for loss in ours)
    if worst > TOLERANCE:
        raise ArithmeticError(
            f"our loss or its gradient is {worst:.1e} from the reference on {device}, which is"
            f" more than {TOLERANCE:.0e}; nothing was measured"
        )
    return worst
