"""The contrastive bench on a GPU: its grid, host and device apart, the product peak, large batches.

python -m benchmarks.gpu.grid peak       bf16 and float32 rate of one large product
python -m benchmarks.gpu.grid largest    B = 65,536, or the largest batch that fits the card
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from amdim_fast.bench.graphs import captured, launches
from amdim_fast.bench.inputs import MAP_SIDES, make_inputs, planned_bytes
from amdim_fast.bench.measure import host_milliseconds, stopwatch
from benchmarks import harness
from benchmarks.nce_providers import FORWARD_BACKWARD, run

# B, D and type, the most asked for first: what a time limit cuts off is the last.
GRID = (
    (1024, 2048, "bfloat16"),
    (256, 1024, "bfloat16"),
    (4096, 2048, "bfloat16"),
    (1024, 2048, "float32"),
    (480, 1536, "bfloat16"),
)
WITH_FORWARD = GRID[:1]  # measured without gradients too; each is one more compilation
OURS = "triton_objective"
PROVIDERS = (
    *("reference", "reference_compiled", OURS, "triton", "triton_least", "torch_objective"),
    "gemms",
)
LIMBS = "triton_limbs"  # for float32 alone
# The original's algorithm takes too much memory to be captured beside the others.
NOT_CAPTURED = "reference"
HOST_CALLS, REPLAYS, SECONDS = 50, 30, 1.0
LOCATIONS = tuple(side**2 for side in MAP_SIDES[1:])
PEAK_SIDE = 8192
LARGEST, LARGEST_WIDTH, BATCH_STEP = 65536, 2048, 4096
SHARE_TO_FILL = 0.95  # by features, gradients and what the plan of the loss has
LARGEST_CASE = "cuda-largest-bfloat16"


def grid_key(images: int, width: int, dtype: str) -> str:
    return f"cuda-b{images}-d{width}-{dtype}"


def peak_key(dtype: str) -> str:
    return f"cuda-peak-{dtype}"


def product_flops(images: int, width: int, mode: str) -> float:
    """Floating-point operations of the products: one forward, three forward + backward.

    Both directions; two sources against the first map, one against the second.
    """
    five, seven = LOCATIONS
    pairs = 2 * images * images * (2 * five + seven)
    return 2.0 * pairs * width * (3 if mode == FORWARD_BACKWARD else 1)


def measure_host_and_device(
    calls: Mapping[str, Callable[[], object]], record: Callable[..., None]
) -> None:
    """Rows of what forward + backward takes of the host, of the device, and how many launches."""
    samples, busy = harness.timed(
        calls, warm_ups=0, measure=host_milliseconds, repeats=HOST_CALLS, seconds=SECONDS
    )
    for provider, call in calls.items():
        note = busy
        if provider != NOT_CAPTURED:
            try:
                measure_device(provider, call, record)
            except (RuntimeError, OSError) as error:
                note = f"no CUDA graph: {str(error).splitlines()[0]}"
        more = {"note": note, "clock": harness.WALL, "beside": calls}
        record(provider, FORWARD_BACKWARD, "host_time", "ms", *samples[provider], **more)


def measure_device(provider: str, call: Callable[[], object], record: Callable[..., None]) -> None:
    """Rows of a graph of the call."""
    graph = captured(call)
    replays, busy = harness.timed(
        {"": graph.replay}, "cuda", warm_ups=1, repeats=REPLAYS, seconds=SECONDS
    )
    more = {"note": busy, "clock": harness.DEVICE}
    record(provider, FORWARD_BACKWARD, "device_time", "ms", *replays[""], **more)
    record(provider, FORWARD_BACKWARD, "launches", "", float(launches(graph)))


def measure_peak(out: Path) -> int:
    """Rows of the rate of one square product of each type."""
    for dtype in ("bfloat16", "float32"):
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
        harness.record(out, condition, "rate", "TFLOP/s", rates, "cuda", clock=harness.DEVICE)
    return 0


def fits(images: int, free: int) -> bool:
    """Whether features, gradients and what the plan has take at most their share."""
    features = images * make_inputs(1, LARGEST_WIDTH, dtype=torch.bfloat16).nbytes
    planned = planned_bytes(images, LARGEST_WIDTH, torch.device("cuda"), torch.bfloat16)
    return 2 * features + planned <= SHARE_TO_FILL * free


def measure_largest(out: Path) -> int:
    """Rows of the largest batch up to 65,536 that runs forward + backward."""
    free, _ = torch.cuda.mem_get_info()
    measure = stopwatch("cuda", idle=True)
    run(OURS, FORWARD_BACKWARD, make_inputs(64, LARGEST_WIDTH, "cuda", torch.bfloat16))
    for batch in range(LARGEST, 0, -BATCH_STEP):
        if not fits(batch, free):
            continue
        inputs = None
        try:
            inputs = make_inputs(batch, LARGEST_WIDTH, "cuda", torch.bfloat16)
            milliseconds = measure(partial(run, OURS, FORWARD_BACKWARD, inputs))
        except torch.OutOfMemoryError:
            print(f"  B = {batch}: out of memory")
            del inputs
            torch.cuda.empty_cache()
            continue
        shapes = {"B": batch, "D": LARGEST_WIDTH, "L": list(LOCATIONS)}
        condition = harness.Condition(
            "nce", LARGEST_CASE, OURS, FORWARD_BACKWARD, shapes, "bfloat16"
        )
        note = "at least: no larger one was tried" if batch == LARGEST else ""
        harness.record(out, condition, "largest_batch", "images", [float(batch)], "cuda", note=note)
        harness.record(out, condition, "time", "ms", [milliseconds], "cuda", clock=harness.WALL)
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
