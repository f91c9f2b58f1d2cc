"""Both views of every image, drawing included: TwoViews against torchvision and kornia.

    python -m benchmarks.bench_augment --device cpu

On a CPU one core a provider, and ours on all of them too; under a minute. Exit status 1 if the
compiled views differ from the reference's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amdim_fast.views.augment import TwoViews, augment, sample_view_params
from amdim_fast.views.params import POLICIES
from benchmarks import harness
from benchmarks.augment_providers import OTHERS, PER_IMAGE

NAME = "augment"
ALL_CORES = "-all-cores"  # suffix of a case
OURS, OURS_ALL, KERNEL = "amdim_fast", "amdim_fast, all cores", "amdim_fast, kernel alone"


@dataclass(frozen=True)
class Case:
    """``images`` of side x side pixels, two views each by a policy."""

    device: str
    policy: str
    images: int
    side: int
    dtype: str
    repeats: int


CASES = {
    "cpu-256px-imagenet128": Case("cpu", "imagenet128", 64, 256, "float32", 7),
    "cpu-96px-stl10": Case("cpu", "stl10", 64, 96, "float32", 7),
    "cuda-256px-imagenet128": Case("cuda", "imagenet128", 256, 256, "bfloat16", 30),
    "cuda-96px-stl10": Case("cuda", "stl10", 256, 96, "bfloat16", 30),
    "cuda-32px-cifar": Case("cuda", "cifar", 256, 32, "bfloat16", 30),
}


def make_images(count: int, side: int) -> Tensor:
    """uint8 [N, H, W, 3] with the coarse structure and the grain of photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 300 - 20
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    grain = 8 * torch.randn(count, 3, side, side, generator=generator)
    return (smooth + grain).clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def compiled_equals_reference(case: Case, images: Tensor) -> bool:
    """Whether a few views agree bit for bit."""
    policy, some = POLICIES[case.policy], images[:8]
    params = sample_view_params(policy, [some.shape[1:3]] * len(some))
    options: dict[str, Any] = {"size": policy.size, "mean": policy.mean, "std": policy.std}
    views = [augment(some, params, backend=b, **options) for b in ("compiled", "reference")]
    return torch.equal(*views)


def ours(case: Case, images: Tensor) -> dict[str, Callable[[], object]]:
    """Our providers; on a GPU also the kernel without drawing and copying parameters."""
    policy, dtype = POLICIES[case.policy], getattr(torch, case.dtype)
    two_views = TwoViews(policy, dtype=dtype, channels_last=True)
    calls: dict[str, Callable[[], object]] = {OURS: lambda: two_views(images)}
    if case.device == "cpu":

        def on_all_cores() -> object:
            torch.set_num_threads(ALL_THREADS)
            views = two_views(images)
            torch.set_num_threads(1)
            return views

        return calls | {OURS_ALL: on_all_cores}
    params = sample_view_params(policy, [images.shape[1:3]] * len(images)).to(images.device)

    def replayed() -> object:
        return augment(
            images,
            params,
            size=policy.size,
            mean=policy.mean,
            std=policy.std,
            dtype=dtype,
            channels_last=True,
        )

    return calls | {KERNEL: captured(replayed)}


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """A CUDA graph of the call, which times the device alone."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


ALL_THREADS = torch.get_num_threads()


def measure_case(key: str, out: Path) -> bool:
    """Check and time one case; whether the views were equal."""
    case = CASES[key]
    images = make_images(case.images, case.side).to(case.device)
    if not compiled_equals_reference(case, images):
        print(f"{key}: the compiled views differ from the reference's")
        return False
    torch.set_num_threads(1)
    calls = ours(case, images)
    for name, make in OTHERS[case.device].items():
        call = make(POLICIES[case.policy], images, getattr(torch, case.dtype))
        calls |= {} if call is None else {name: call}
        if call is None:
            print(f"  left out: {name}, its package is not installed")
    samples = harness.time_interleaved(
        calls,
        repeats=case.repeats,
        warm_ups=1,
        measure=harness.stopwatch(case.device),
        seconds=20,
    )
    shapes: dict[str, Any] = {"images": f"{case.images} of {case.side} x {case.side}", "views": 2}
    shapes["size"] = POLICIES[case.policy].size
    for provider, milliseconds in samples.items():
        torch.set_num_threads(ALL_THREADS if provider == OURS_ALL else 1)
        device = harness.device_name(case.device)
        # The number of threads is part of the device, and a case has one device.
        name = key + (ALL_CORES if provider == OURS_ALL else "")
        condition = harness.Condition(NAME, name, provider, "two_views", shapes, case.dtype)
        rates = [1e3 * case.images / sample for sample in milliseconds]
        for metric, unit, values in (
            ("time", "ms", milliseconds),
            ("rate", "images/s", rates),
        ):
            note = PER_IMAGE if provider in OTHERS["cpu"] else ""
            row = harness.make_row(condition, metric, unit, values, device=device, note=note)
            harness.append_row(row, out)
        print(f"  {key} {provider}: {rates[len(rates) // 2]:,.0f} images/s", flush=True)
    torch.set_num_threads(ALL_THREADS)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Measure the cases of a device; 1 if views were not equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all of the device")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / f"{NAME}.jsonl")
    options = parser.parse_args(arguments)
    keys = options.cases or [key for key, case in CASES.items() if case.device == options.device]
    return 0 if all([measure_case(key, options.out) for key in keys]) else 1


if __name__ == "__main__":
    sys.exit(main())
