"""The six costs of AMDIM: LossMultiNCE against the original's algorithm and the bare products.

    python -m benchmarks.bench_nce --device cpu

About six minutes on two cores. A provider that disagrees with the reference gets no row, and the
exit status is then 1.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from amdim_fast.bench.inputs import MAP_SIDES, Inputs, make_inputs
from amdim_fast.bench.measure import largest_difference
from benchmarks import harness
from benchmarks.gpu.grid import DTYPES, GRID, LARGEST_REFERENCE, providers
from benchmarks.nce_providers import FORWARD_BACKWARD, LOSSES, MODES, PRODUCTS, extra_peak, run

NAME = "nce"
# Largest difference from the reference, relative to each tensor's largest value. Float32 sums of a
# thousand terms in another order differ by about 1e-5 here; a wrong mask or scale by 1e-2 or more.
# The reference rounds bfloat16 products before it sums, which alone is worth a hundredth.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
# Where the reference's memory is counted, to calculate that of a larger batch. At this width
# scores are nearly all of it.
COUNTED_IMAGES, COUNTED_WIDTH = 64, 8


@dataclass(frozen=True)
class Case:
    """Sizes, and what is measured; ``checked_images`` is B of the equality check, B if None."""

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

    @property
    def key(self) -> str:
        """Its name in the rows."""
        return f"{self.device}-b{self.images}-d{self.width}-{self.dtype}"

    def inputs(self, images: int) -> Inputs:
        """Like those of the case, of any batch size."""
        return make_inputs(images, self.width, self.device, getattr(torch, self.dtype))


def _on_cpu(images: int, *others: str, **more: Any) -> Case:
    names = ("reference", "torch", "torch_recompute", *others)
    return Case("cpu", images, 1024, "float32", names, **more)


def _on_gpu(images: int, width: int, dtype: str) -> Case:
    huge = images > LARGEST_REFERENCE
    return Case(
        device="cuda",
        images=images,
        width=width,
        dtype=dtype,
        providers=providers(images, width, dtype),
        modes=(FORWARD_BACKWARD,) if huge else MODES,
        repeats=1 if huge else 30,
        warm_ups=0 if huge and dtype == "float32" else 1,
        seconds=1.5,
        checked_images=min(images, 256),
    )


CASES = [
    _on_cpu(480, "reference_compiled", *PRODUCTS, modes=MODES),
    *map(_on_cpu, (64, 128, 256)),
    Case(
        device="cpu",
        images=4096,
        width=256,
        dtype="float32",
        providers=("torch",),
        repeats=1,
        warm_ups=0,
        checked_images=256,
        calculate_reference=True,
    ),
    *(_on_gpu(images, width, dtype) for dtype in DTYPES for images, width in GRID),
]


def disagreeing(case: Case) -> set[str]:
    """Providers of ``case`` further from the reference than the tolerance, printed."""
    inputs, tolerance = case.inputs(case.checked_images or case.images), TOLERANCE[case.dtype]
    wrong = set()
    for mode in case.modes:
        expected = run("reference", mode, inputs)
        for provider in sorted({*case.providers} & LOSSES.keys() - {"reference"}):
            difference = largest_difference(run(provider, mode, inputs), expected)
            allowed = f"{difference:.1e} from the reference, {tolerance:.0e} allowed"
            print(f"  {provider} {mode}: {allowed}")
            if not difference <= tolerance:
                wrong.add(provider)
    return wrong


def measure_case(case: Case, out: Path) -> set[str]:
    """Check, time and weigh one case; returns the providers that were left out as wrong."""
    wrong = disagreeing(case)
    inputs = case.inputs(case.images)
    shapes = {"B": case.images, "D": case.width, "L": [side**2 for side in MAP_SIDES[1:]]}

    def record(
        provider: str, mode: str, metric: str, unit: str, *found: float, **more: Any
    ) -> None:
        condition = harness.Condition(NAME, case.key, provider, mode, shapes, case.dtype)
        harness.record(out, condition, metric, unit, found, case.device, **more)

    for mode in case.modes:
        calls = {p: partial(run, p, mode, inputs) for p in case.providers if p not in wrong}
        limits = {"warm_ups": case.warm_ups, "seconds": case.seconds}
        samples, busy = harness.timed(calls, case.device, repeats=case.repeats, **limits)
        for provider, times in samples.items():
            record(provider, mode, "time", "ms", *times, note=busy)
            if provider not in PRODUCTS:
                size, note = extra_peak(provider, mode, inputs)
                record(provider, mode, "extra_peak_memory", "bytes", size, note=note)
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
