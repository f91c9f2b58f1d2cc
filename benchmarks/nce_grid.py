"""The contrastive bench on a GPU: its grid of sizes, the measured product peak, the largest batch.

python -m benchmarks.nce_grid peak       bf16 and float32 rate of one large product
python -m benchmarks.nce_grid largest    largest batch whose forward + backward fits the card
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.nce_providers import FORWARD_BACKWARD, make_inputs, run

GRID = ((256, 1024), (480, 1536), (1024, 2048), (1024, 2560), (4096, 2048), (16384, 2048))
DTYPES = ("bfloat16", "float32")
# One compilation of the reference takes longer than all its timings: where goals ask for it.
COMPILED = {(256, 1024, "bfloat16"), (1024, 2048, "bfloat16")}
# The reference keeps about a dozen [B, B, L] tensors; beyond this it does not fit a card.
LARGEST_REFERENCE = 4096
LOCATIONS = (25, 49)
PEAK_SIDE = 8192
PEAK_REPEATS = 20
LARGEST_WIDTH = 2048
BATCH_STEP = 4096
SHARE_TO_FILL = 0.97


def grid_key(images: int, width: int, dtype: str) -> str:
    """Name of one case of the grid."""
    return f"cuda-b{images}-d{width}-{dtype}"


def peak_key(dtype: str) -> str:
    """Name of the case of the product peak."""
    return f"cuda-peak-{dtype}"


def providers(images: int, width: int, dtype: str) -> tuple[str, ...]:
    """What is measured at one point of the grid."""
    # IEEE products of float32 have no tensor core to feed.
    loads = () if dtype == "float32" else ("triton_descriptors",)
    ours = ("triton", "triton_fused", *loads, "triton_elementwise", "torch", "gemms")
    if images > LARGEST_REFERENCE:
        return ours if dtype == "bfloat16" else ("triton", "gemms")
    compiled = ("reference_compiled",) if (images, width, dtype) in COMPILED else ()
    return ("reference", *compiled, *ours)


def product_flops(images: int, width: int, locations: tuple[int, int], mode: str) -> float:
    """Floating-point operations of the products: one forward, three forward + backward.

    Both directions; two sources against the first map, one against the second.
    """
    five, seven = locations
    pairs = 2 * images * images * (2 * five + seven)
    return 2.0 * pairs * width * (3 if mode == FORWARD_BACKWARD else 1)


def measure_peak(out: Path) -> int:
    """Rows of the rate of one square product of each type."""
    for dtype in DTYPES:
        a, b = (
            torch.randn(PEAK_SIDE, PEAK_SIDE, device="cuda", dtype=getattr(torch, dtype))
            for _ in range(2)
        )
        samples = harness.time_interleaved(
            {"peak": lambda a=a, b=b: torch.mm(a, b)},  # type: ignore[misc]
            repeats=PEAK_REPEATS,
            warm_ups=3,
            measure=harness.stopwatch("cuda"),
        )["peak"]
        rates = [2.0 * PEAK_SIDE**3 / (1e-3 * sample) / 1e12 for sample in samples]
        shapes = {"m": PEAK_SIDE, "n": PEAK_SIDE, "k": PEAK_SIDE}
        condition = harness.Condition(
            "nce", peak_key(dtype), "product_peak", "product", shapes, dtype
        )
        row = harness.make_row(
            condition, "rate", "TFLOP/s", rates, device=harness.device_name("cuda")
        )
        harness.append_row(row, out)
        print(f"  product peak {dtype}: {row['q50']:.0f} TFLOP/s")
    return 0


def measure_largest(out: Path, start: int | None) -> int:
    """Row of the largest batch that runs forward + backward: from the calculated one downwards."""
    free, _ = torch.cuda.mem_get_info()
    image_bytes = 2 * (1 + 25 + 49) * LARGEST_WIDTH * 2 * 2  # two views, bfloat16, and gradients
    images = start or int(SHARE_TO_FILL * free / image_bytes) // BATCH_STEP * BATCH_STEP
    while images > 0:
        inputs = None
        try:
            inputs = make_inputs(images, LARGEST_WIDTH, "bfloat16", "cuda")
            measure = harness.stopwatch("cuda")
            milliseconds = measure(lambda inputs=inputs: run("triton", FORWARD_BACKWARD, inputs))  # type: ignore[misc]
        except torch.OutOfMemoryError:
            print(f"  B = {images}: out of memory")
            del inputs
            torch.cuda.empty_cache()
            images -= BATCH_STEP
            continue
        condition = harness.Condition(
            *("nce", "cuda-largest-bfloat16", "triton", FORWARD_BACKWARD),
            {"B": images, "D": LARGEST_WIDTH, "L": [25, 49]},
            "bfloat16",
        )
        for metric, unit, value in (
            ("largest_batch", "images", float(images)),
            ("time", "ms", milliseconds),
        ):
            row = harness.make_row(
                condition, metric, unit, [value], device=harness.device_name("cuda")
            )
            harness.append_row(row, out)
        print(f"  largest batch at D = {LARGEST_WIDTH}: {images}, {milliseconds:.0f} ms")
        return 0
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(description="Product peak and largest batch of a GPU.")
    parser.add_argument("part", choices=("peak", "largest"))
    parser.add_argument("--start", type=int, help="first batch tried, default from free memory")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "nce.jsonl")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("torch finds no CUDA device; nothing is measured", file=sys.stderr)
        return 1
    if options.part == "peak":
        return measure_peak(options.out)
    return measure_largest(options.out, options.start)


if __name__ == "__main__":
    sys.exit(main())
