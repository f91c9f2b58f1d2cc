"""Both views of every image, drawing included: TwoViews against torchvision.

    python -m benchmarks.bench_augment --device cpu     # under a minute
    python -m benchmarks.bench_augment --device cuda    # under 40 seconds

On a CPU one core per provider, and ours on all cores too. On a GPU a call begins with an idle
device; of our kernel alone a graph is replayed. Exit status 1 if the compiled views differ from the
reference's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amdim_fast.bench.graphs import captured
from amdim_fast.bench.measure import stopwatch
from amdim_fast.views.augment import augment
from amdim_fast.views.params import POLICIES, ViewPolicy
from amdim_fast.views.sampling import sample_view_params
from amdim_fast.views.two_views import TwoViews
from benchmarks import harness
from benchmarks.augment_providers import ONCE, OTHERS, PER_IMAGE

NAME = "augment"
ALL_CORES = "-all-cores"  # suffix of a case
OURS, OURS_ALL, KERNEL = "amdim_fast", "amdim_fast, all cores", "amdim_fast, kernel alone"
APART = (ONCE, KERNEL)  # measured by themselves
ALL_THREADS = torch.get_num_threads()


# Device -> images of a batch, type of the views, samples, and the side of the images of a policy.
DEVICES = {
    "cpu": (64, torch.float32, 7, {"imagenet128": 256, "stl10": 96}),
    "cuda": (256, torch.bfloat16, 30, {"imagenet128": 256, "stl10": 96, "cifar": 32}),
}


def make_images(count: int, side: int) -> Tensor:
    """uint8 [N, H, W, 3] with the coarse structure and the grain of photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 300 - 20
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    grain = 8 * torch.randn(count, 3, side, side, generator=generator)
    return (smooth + grain).clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def with_drawn(policy: ViewPolicy, images: Tensor, **options: Any) -> Callable[..., Tensor]:
    """``augment`` by parameters drawn once; its other options may follow."""
    params = sample_view_params(policy, [images.shape[1:3]] * len(images)).to(images.device)
    sizes: dict[str, Any] = {"size": policy.size, "mean": policy.mean, "std": policy.std}
    return partial(augment, images, params, **sizes, **options)


def ours(policy: ViewPolicy, images: Tensor, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Our providers; on a GPU also the kernel without drawing and copying parameters."""
    two_views = TwoViews(policy, dtype=dtype, channels_last=True)

    def on_all_cores() -> object:
        torch.set_num_threads(ALL_THREADS)
        views = two_views(images)
        torch.set_num_threads(1)
        return views

    if images.is_cuda:
        kernel = with_drawn(policy, images, dtype=dtype, channels_last=True)
        return {OURS: partial(two_views, images), KERNEL: kernel}
    return {OURS: partial(two_views, images), OURS_ALL: on_all_cores}


def sampled(
    calls: dict[str, Callable[[], object]], device: str, repeats: int
) -> tuple[dict[str, list[float]], str]:
    """Milliseconds, in turn; of what is slow once, and of the kernel alone a graph's."""
    whole = {name: call for name, call in calls.items() if name not in APART}
    slow = {name: call for name, call in calls.items() if name == ONCE}
    alone = {n: captured(call).replay for n, call in calls.items() if n == KERNEL}
    idle = stopwatch(device, idle=True)
    samples, busy = harness.timed(whole, measure=idle, repeats=repeats, warm_ups=1, seconds=20)
    samples |= harness.timed(slow, measure=idle, repeats=1, warm_ups=0)[0]
    return samples | harness.timed(alone, device, repeats=repeats, warm_ups=1)[0], busy


def measure(device: str, policy_name: str, out: Path) -> bool:
    """Check and time one policy; whether the views were equal."""
    count, dtype, repeats, sides = DEVICES[device]
    policy, side = POLICIES[policy_name], sides[policy_name]
    key = f"{device}-{side}px-{policy_name}"
    images = make_images(count, side).to(device)
    few = with_drawn(policy, images[:8])
    if not torch.equal(few(backend="compiled"), few(backend="reference")):
        print(f"{key}: the compiled views differ from the reference's")
        return False
    torch.set_num_threads(1)
    calls = ours(policy, images, dtype)
    calls |= {name: make(policy, images) for name, make in OTHERS[device].items()}
    samples, busy = sampled(calls, device, repeats)
    whole = [name for name in calls if name not in APART]
    shapes = {"images": f"{count} of {side} x {side}", "views": 2, "size": policy.size}
    for provider, milliseconds in samples.items():
        # The number of threads is part of the device, and a case has one device.
        torch.set_num_threads(ALL_THREADS if provider == OURS_ALL else 1)
        case = key + (ALL_CORES if provider == OURS_ALL else "")
        name = str(dtype).removeprefix("torch.")
        condition = harness.Condition(NAME, case, provider, "two_views", shapes, name)
        note = busy or (PER_IMAGE if provider in OTHERS["cpu"] else "")
        rates = [1e3 * count / sample for sample in milliseconds]
        more: dict[str, Any] = {"note": note, "clock": harness.WALL, "beside": whole}
        if provider not in whole:
            more["beside"] = ()
        if provider == KERNEL:
            more["clock"] = harness.DEVICE
        harness.record(out, condition, "time", "ms", milliseconds, device, **more)
        harness.record(out, condition, "rate", "images/s", rates, device, **more)
    torch.set_num_threads(ALL_THREADS)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Measure the policies of a device; 1 if views were not equal."""
    options = harness.parser(NAME, __doc__, "cpu", "cuda").parse_args(arguments)
    policies = DEVICES[options.device][-1]
    equal = [measure(options.device, policy, options.out) for policy in policies]
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
