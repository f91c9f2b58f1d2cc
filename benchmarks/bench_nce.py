"""The six costs of AMDIM: LossMultiNCE against the original's algorithm and the bare products.

    python -m benchmarks.bench_nce --device cpu

About ten minutes on two cores. Every provider is compared with the reference in float64 first;
one of ours that disagrees gets no row, and the exit status is then 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from amdim_fast.bench.inputs import MAP_SIDES, Inputs, make_inputs
from amdim_fast.bench.measure import largest_difference, relative_errors, stopwatch
from benchmarks import harness
from benchmarks.gpu import grid
from benchmarks.nce_providers import (
    COMPILED,
    FORWARD_BACKWARD,
    LOSSES,
    MODES,
    PEERS,
    PRODUCTS,
    extra_peak,
    run,
)

NAME = "nce"
# Largest difference from float64, relative to each tensor's largest value. Float32 sums of a
# thousand terms in another order differ by about 1e-5 here; a wrong mask or scale by 1e-2 or more.
# One rounding to bfloat16 is worth half a hundredth.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
VALUES = ("loss_1t5", "loss_1t7", "loss_5t5", "lgt_reg")
MAPS = ("r1_x1", "r5_x1", "r7_x1", "r1_x2", "r5_x2", "r7_x2")
# Where the reference's memory is counted, to calculate that of a larger batch. At this width
# scores are nearly all of it.
COUNTED_IMAGES, COUNTED_WIDTH = 64, 8


@dataclass(frozen=True)
class Case:
    """Sizes, and what is measured; ``checked_images`` is B of the equality check, B if None.

    ``taken`` is the number of cores that other processes take while it is timed.
    """

    device: str
    images: int
    width: int
    dtype: str
    providers: tuple[str, ...]
    modes: tuple[str, ...] = (FORWARD_BACKWARD,)
    repeats: int = 5
    warm_ups: int = 1
    seconds: float = float("inf")
    checked_images: int | None = None
    calculate_reference: bool = False
    taken: int = 0

    @property
    def key(self) -> str:
        """Its name in the rows."""
        taken = f"-taken{self.taken}" if self.taken else ""
        return f"{self.device}-b{self.images}-d{self.width}-{self.dtype}{taken}"

    def inputs(self, images: int) -> Inputs:
        """Like those of the case, of any batch size."""
        return make_inputs(images, self.width, self.device, getattr(torch, self.dtype))


def _on_cpu(images: int, *others: str, **more: Any) -> Case:
    ours = (name for name in LOSSES if name.startswith("torch"))
    return Case("cpu", images, 1024, "float32", (*PEERS, *ours, *others), **more)


def _on_gpu(images: int, width: int, dtype: str) -> Case:
    checked = images if images <= LARGEST_TRUTH else CHECKED
    modes = MODES if (images, width, dtype) in grid.WITH_FORWARD else (FORWARD_BACKWARD,)
    providers = (*grid.PROVIDERS, *([grid.LIMBS] if dtype == "float32" else []))
    return Case("cuda", images, width, dtype, providers, modes, 30, 2, 1.5, checked)


# Above the first, the reference in float64 does not fit a card; there the second is checked.
LARGEST_TRUTH, CHECKED = 1024, 256
CASES = [
    _on_cpu(480, *PRODUCTS, modes=MODES),
    _on_cpu(480, taken=1),
    *map(_on_cpu, (64, 128, 256)),
    Case(
        device="cpu",
        images=4096,
        width=256,
        dtype="float32",
        providers=("torch_objective",),
        repeats=1,
        warm_ups=0,
        checked_images=256,
        calculate_reference=True,
    ),
    *(_on_gpu(*point) for point in grid.GRID),
]


def disagreeing(case: Case, record: Callable[..., None]) -> set[str]:
    """Providers of ours further from float64 than the tolerance, printed; rows of all errors."""
    images = case.checked_images or case.images
    inputs, tolerance = case.inputs(images), TOLERANCE[case.dtype]
    truth = run("reference", FORWARD_BACKWARD, inputs.double())
    wrong = set()
    for provider in (p for p in case.providers if p in LOSSES):
        if provider == COMPILED and images != case.images:
            continue
        outputs = {mode: run(provider, mode, inputs) for mode in case.modes}
        difference = max(
            largest_difference(found, truth[: len(found)]) for found in outputs.values()
        )
        print(f"  {provider}: {difference:.1e} from float64, {tolerance:.0e} allowed")
        if provider not in PEERS and not difference <= tolerance:
            wrong.add(provider)
        elif images == case.images:
            errors = relative_errors(outputs[FORWARD_BACKWARD], truth)
            for metric, names, found in (
                ("value_error", VALUES, errors[: len(VALUES)]),
                ("gradient_error", MAPS, errors[len(VALUES) :]),
            ):
                note = ", ".join(f"{n} {e:.1e}" for n, e in zip(names, found, strict=True))
                record(provider, FORWARD_BACKWARD, metric, "", max(found), note=note)
    return wrong


def fitting(
    calls: Mapping[str, Callable[[], object]], warm_ups: int
) -> dict[str, Callable[[], object]]:
    """The calls, made ``warm_ups`` times, without those that are out of memory."""
    kept = {}
    for provider, call in calls.items():
        try:
            for _ in range(warm_ups):
                call()
            kept[provider] = call
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            print(f"  {provider}: out of memory")
    return kept


def measure_case(case: Case, out: Path) -> set[str]:
    """Check, time and weigh one case; returns the providers that were left out as wrong."""
    torch._dynamo.reset()
    shapes = {"B": case.images, "D": case.width, "L": [side**2 for side in MAP_SIDES[1:]]}

    def record(
        provider: str, mode: str, metric: str, unit: str, *found: float, **more: Any
    ) -> None:
        condition = harness.Condition(NAME, case.key, provider, mode, shapes, case.dtype)
        harness.record(out, condition, metric, unit, found, case.device, **more)

    wrong = disagreeing(case, record)
    inputs = case.inputs(case.images)
    for mode in case.modes:
        named = {p: partial(run, p, mode, inputs) for p in case.providers if p not in wrong}
        calls = fitting(named, case.warm_ups)
        clock = stopwatch(case.device, idle=True)
        with harness.taken_cores(case.taken):
            samples, busy = harness.timed(
                calls, warm_ups=0, measure=clock, repeats=case.repeats, seconds=case.seconds
            )
        if case.taken:
            busy = f"{case.taken} of {os.cpu_count()} cores taken on purpose"
        for provider, times in samples.items():
            more = {"note": busy, "clock": harness.WALL, "beside": samples}
            record(provider, mode, "time", "ms", *times, **more)
            if provider not in PRODUCTS:
                size, note = extra_peak(provider, mode, inputs)
                record(provider, mode, "extra_peak_memory", "bytes", size, note=note)
        if case.device == "cuda" and mode == FORWARD_BACKWARD:
            grid.measure_host_and_device(calls, record)
    if case.calculate_reference:
        small = make_inputs(COUNTED_IMAGES, COUNTED_WIDTH)
        size, _ = extra_peak("reference", FORWARD_BACKWARD, small)
        size = size * case.images**2 // COUNTED_IMAGES**2
        note = f"calculated, not measured: the peak at B = {COUNTED_IMAGES}, times B squared"
        calculated = partial(record, note=note, measured=False)
        calculated("reference", FORWARD_BACKWARD, "calculated_bytes", "bytes", size)
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Measure the cases of a device; 1 if a provider disagreed with the reference."""
    options = harness.parser(NAME, __doc__, "cpu", "cuda").parse_args(arguments)
    wrong = set()
    for case in CASES:
        if case.device == options.device:
            print(case.key, flush=True)
            wrong |= measure_case(case, options.out)
    if wrong:
        print(f"left out, further from the reference than allowed: {', '.join(sorted(wrong))}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
