"""The contrastive bench on a GPU: its grid of sizes, the measured product peak, the largest batch.

python -m benchmarks.gpu.grid peak       bf16 and float32 rate of one large product
python -m benchmarks.gpu.grid largest    largest batch whose forward + backward fits the card
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

from amdim_fast.bench.inputs import Inputs, make_inputs
from amdim_fast.bench.measure import stopwatch
from benchmarks import harness
from benchmarks.nce_providers import FORWARD_BACKWARD, run

GRID = ((256, 1024), (480, 1536), (1024, 2048), (1024, 2560), (4096, 2048), (16384, 2048))
DTYPES = ("bfloat16", "float32")
# Compiling the reference takes longer than timing it: only where a goal needs it.
COMPILED = {(256, 1024, "bfloat16"), (1024, 2048, "bfloat16")}
# The reference keeps about a dozen [B, B, L] tensors; beyond this it does not fit a card.
LARGEST_REFERENCE = 4096
LOCATIONS = (25, 49)
PEAK_SIDE = 8192
LARGEST_WIDTH = 2048
BATCH_STEP = 4096
SHARE_TO_FILL = 0.97


def grid_key(images: int, width: int, dtype: str) -> str:
    return f"cuda-b{images}-d{width}-{dtype}"


def peak_key(dtype: str) -> str:
    return f"cuda-peak-{dtype}"


def providers(images: int, width: int, dtype: str) -> tuple[str, ...]:
    """What is measured at one point of the grid."""
    ours = ("triton", "torch", "gemms")
    if images > LARGEST_REFERENCE:
        return ours if dtype == "bfloat16" else ("triton", "gemms")
    compiled = ("reference_compiled",) if (images, width, dtype) in COMPILED else ()
    return ("reference", *compiled, *ours)


def product_flops(images: int, width: int, mode: str) -> float:
    """Floating-point operations of the products: one forward, three forward + backward.

    Both directions; two sources against the first map, one against the second.
    """
    five, seven = LOCATIONS
    pairs = 2 * images * images * (2 * five + seven)
    return 2.0 * pairs * width * (3 if mode == FORWARD_BACKWARD else 1)


def measure_peak(out: Path) -> int:
    """Rows of the rate of one square product of each type."""
    for dtype in DTYPES:
        a, b = (
            torch.randn(PEAK_SIDE, PEAK_SIDE, device="cuda", dtype=getattr(torch, dtype))
            for _ in range(2)
        )
        samples, _ = harness.timed({"": partial(torch.mm, a, b)}, "cuda", repeats=20, warm_ups=3)
        rates = [2.0 * PEAK_SIDE**3 / (1e-3 * sample) / 1e12 for sample in samples[""]]
        shapes = dict.fromkeys("mnk", PEAK_SIDE)
        condition = harness.Condition(
            "nce", peak_key(dtype), "product_peak", "product", shapes, dtype
        )
        harness.record(out, condition, "rate", "TFLOP/s", rates, "cuda")
    return 0


def measure_largest(out: Path) -> int:
    """Rows of the largest batch that runs forward + backward: from the calculated one downwards."""
    free, _ = torch.cuda.mem_get_info()
    image_bytes = 2 * make_inputs(1, LARGEST_WIDTH, dtype=torch.bfloat16).nbytes  # and gradients
    images = int(SHARE_TO_FILL * free / image_bytes) // BATCH_STEP * BATCH_STEP
    measure = stopwatch("cuda")
    for batch in range(images, 0, -BATCH_STEP):
        inputs: Inputs | None = None
        try:
            inputs = make_inputs(batch, LARGEST_WIDTH, "cuda", torch.bfloat16)
            milliseconds = measure(partial(run, "triton", FORWARD_BACKWARD, inputs))
        except torch.OutOfMemoryError:
            print(f"  B = {batch}: out of memory")
            del inputs
            torch.cuda.empty_cache()
            continue
        shapes = {"B": batch, "D": LARGEST_WIDTH, "L": list(LOCATIONS)}
        case = "cuda-largest-bfloat16"
        condition = harness.Condition("nce", case, "triton", FORWARD_BACKWARD, shapes, "bfloat16")
        harness.record(out, condition, "largest_batch", "images", [float(batch)], "cuda")
        harness.record(out, condition, "time", "ms", [milliseconds], "cuda")
        return 0
    return 1


def main(arguments: list[str] | None = None) -> int:
    parser = harness.parser("nce", __doc__)
    parser.add_argument("part", choices=("peak", "largest"))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("torch finds no CUDA device here; nothing was measured", file=sys.stderr)
        return 1
    return {"peak": measure_peak, "largest": measure_largest}[options.part](options.out)


if __name__ == "__main__":
    sys.exit(main())
