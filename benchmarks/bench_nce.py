"""The six costs of AMDIM: LossMultiNCE against the original's algorithm and the bare products.

    python -m benchmarks.bench_nce --device cpu

About six minutes on two cores. A provider that disagrees with the reference gets no row, and the
exit status is then 1.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.nce_grid import DTYPES, GRID, LARGEST_REFERENCE, grid_key, providers
from benchmarks.nce_providers import (
    COUNTED_IMAGES,
    FORWARD_BACKWARD,
    LOSSES,
    MAP_SIDES,
    MODES,
    PRODUCTS,
    Inputs,
    describe_plan,
    make_inputs,
    run,
    run_products,
    stored_bytes_of_reference,
)

NAME = "nce"
WARM_UP_IMAGES = 32
# Largest difference from the reference, relative to each tensor's largest value. Float32 sums of a
# thousand terms in another order differ by about 1e-5 here; a wrong mask or scale by 1e-2 or more.
# The reference rounds bfloat16 products before it sums, which alone is worth a hundredth.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}

# Share of the CPUs; with one of two cores taken, OpenMP's barriers slow small blocks tenfold.
BUSY = 0.03


@dataclass(frozen=True)
class Case:
    """One condition of the table; ``checked_images`` is B of the equality check, B if None."""

    device: str
    images: int
    width: int
    dtype: str
    modes: tuple[str, ...]
    timed: tuple[str, ...]
    weighed: tuple[str, ...]
    repeats: int
    warm_ups: int
    checked_images: int | None = None
    calculate_reference: bool = False
    seconds: float = float("inf")

    @property
    def shapes(self) -> dict[str, Any]:
        """As recorded in rows."""
        return {"B": self.images, "D": self.width, "L": [side**2 for side in MAP_SIDES[1:]]}


PLANNED = ("torch", "torch_recompute")
BASELINES = ("reference", "reference_compiled")

CASES = {
    "cpu-b480-d1024-float32": Case(
        *("cpu", 480, 1024, "float32", MODES),
        timed=(*BASELINES, *PLANNED, "gemms", "gemms_onednn"),
        weighed=(*BASELINES, *PLANNED),
        repeats=5,
        warm_ups=1,
    ),
    **{
        f"cpu-b{images}-d1024-float32": Case(
            *("cpu", images, 1024, "float32", (FORWARD_BACKWARD,)),
            timed=("reference", *PLANNED),
            weighed=("reference", *PLANNED),
            repeats=5,
            warm_ups=1,
        )
        for images in (64, 128, 256)
    },
    "cpu-b4096-d256-float32": Case(
        *("cpu", 4096, 256, "float32", (FORWARD_BACKWARD,)),
        timed=("torch",),
        weighed=("torch",),
        repeats=1,
        warm_ups=0,
        checked_images=256,
        calculate_reference=True,
    ),
}


def _grid_case(images: int, width: int, dtype: str) -> Case:
    measured = providers(images, width, dtype)
    huge = images > LARGEST_REFERENCE
    return Case(
        *("cuda", images, width, dtype, (FORWARD_BACKWARD,) if huge else MODES),
        timed=measured,
        weighed=tuple(p for p in measured if p not in PRODUCTS),
        repeats=1 if huge else 30,
        warm_ups=0 if huge and dtype == "float32" else 1,
        seconds=1.5,
        checked_images=min(images, 256),
    )


CASES |= {
    grid_key(images, width, dtype): _grid_case(images, width, dtype)
    for dtype in DTYPES
    for images, width in GRID
}


def build(case: str, provider: str, mode: str) -> harness.Workload:
    """One measurement with inputs of its own."""
    table = CASES[case]
    return _workload(provider, mode, make_inputs(*_sizes(table), table.device), table)


def _sizes(case: Case) -> tuple[int, int, str]:
    return case.images, case.width, case.dtype


def _workload(provider: str, mode: str, inputs: Inputs, case: Case) -> harness.Workload:
    if provider in PRODUCTS:
        return harness.Workload(*2 * (lambda: run_products(provider, mode, inputs),))
    # A compiled function is compiled for its shapes, so its warm-up has the full size.
    small = inputs
    if provider != "reference_compiled":
        small = make_inputs(WARM_UP_IMAGES, case.width, case.dtype, case.device)
    gradients = inputs.maps if mode == FORWARD_BACKWARD else ()
    return harness.Workload(
        call=lambda: run(provider, mode, inputs),
        warm_up=lambda: run(provider, mode, small),
        gradient_bytes=sum(features.numel() * features.element_size() for features in gradients),
        describe=describe_plan if provider in PLANNED else str,
    )


def disagreeing(case: Case, inputs: Inputs) -> set[str]:
    """Providers of ``case`` further from the reference than the tolerance, printed."""
    if case.checked_images is not None:
        inputs = make_inputs(case.checked_images, case.width, case.dtype, case.device)
    tolerance = TOLERANCE[case.dtype]
    wrong = set()
    for mode in case.modes:
        expected = run("reference", mode, inputs)
        for provider in sorted({*case.timed, *case.weighed} & LOSSES.keys() - {"reference"}):
            difference = harness.largest_difference(run(provider, mode, inputs), expected)
            print(
                f"  {provider} {mode}: {difference:.1e} from the reference, {tolerance:.0e} allowed"
            )
            if not difference <= tolerance:
                wrong.add(provider)
    return wrong


def measure_case(key: str, repeats: int | None, out: Path) -> set[str]:
    """Check, time and weigh one case; returns the providers that were left out as wrong."""
    case = CASES[key]
    device = harness.device_name(case.device)
    inputs = make_inputs(*_sizes(case), case.device)
    wrong = disagreeing(case, inputs)

    def record(
        provider: str, mode: str, metric: str, unit: str, *values: float, **more: Any
    ) -> None:
        condition = harness.Condition(NAME, key, provider, mode, case.shapes, case.dtype)
        row = harness.make_row(condition, metric, unit, values, device=device, **more)
        harness.append_row(row, out)
        print(f"  {provider} {mode} {metric}: {row['q50']:,.0f} {unit}, n = {row['n']}", flush=True)

    for mode in case.modes:
        calls = {p: _workload(p, mode, inputs, case).call for p in case.timed if p not in wrong}
        other_work = harness.OtherWork()
        samples = harness.time_interleaved(
            calls,
            repeats=repeats or case.repeats,
            warm_ups=case.warm_ups,
            measure=harness.stopwatch(case.device),
            seconds=case.seconds,
        )
        share = other_work.share()
        note = f"BUSY MACHINE: other work took {share:.0%} of the CPUs" if share > BUSY else ""
        for provider, times in samples.items():
            record(provider, mode, "time", "ms", *times, note=note)
        print(f"  {note}" if note else f"  other work took {share:.1%} of the CPUs")
        for provider in (p for p in case.weighed if p not in wrong):
            if case.device == "cuda":
                size, note = harness.extra_peak_cuda(_workload(provider, mode, inputs, case))
            else:
                arguments = {"case": key, "provider": provider, "mode": mode}
                size, note = harness.extra_peak_in_subprocess(
                    "benchmarks.bench_nce:build", arguments
                )
            record(provider, mode, "extra_peak_memory", "bytes", size, note=note)
    if case.calculate_reference:
        note = f"calculated, not measured: tensors saved at B = {COUNTED_IMAGES}, times B squared"
        size = stored_bytes_of_reference(case.images, case.dtype)
        more: dict[str, Any] = {"note": note, "measured": False}
        record("reference", FORWARD_BACKWARD, "calculated_bytes", "bytes", size, **more)
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Measure the chosen cases; 1 if a provider disagreed with the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all of the device")
    parser.add_argument("--repeats", type=int, help="default: the case's")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / f"{NAME}.jsonl")
    options = parser.parse_args(arguments)
    keys = options.cases or [key for key, case in CASES.items() if case.device == options.device]
    wrong = set()
    for key in keys:
        print(key, flush=True)
        wrong |= measure_case(key, options.repeats, options.out)
    if wrong:
        print(f"left out, further from the reference than allowed: {', '.join(sorted(wrong))}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
