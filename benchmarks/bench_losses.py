"""The losses of docs/other_losses.md, beside their plain definitions, eager and compiled.

    python -m benchmarks.bench_losses --device cpu

About two minutes on two cores. A loss that disagrees with its definition in float64 gets no row.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amdim_fast.bench.measure import allocated_peak, largest_difference, stopwatch
from benchmarks import harness
from benchmarks.plain_losses import PLAIN, Loss, page_loss

NAME = "losses"
DEFINITION, COMPILED, OURS = PROVIDERS = "definition", "compiled", "amdim_fast"
TOLERANCE = 1e-4
REPEATS = 7
Sizes = Mapping[str, int]


class Case(NamedTuple):
    """A loss at sizes of its field that two cores can time; ``K`` are keys of a queue."""

    name: str
    label: str
    sizes: Sizes
    features: Callable[[Sizes], list[Tensor]]
    others: Callable[[Sizes], list[Any]] = lambda sizes: []


def _vectors(sizes: Sizes, count: int = 2) -> list[Tensor]:
    return [torch.randn(sizes["B"], sizes["D"]) for _ in range(count)]


def _clip(sizes: Sizes) -> list[Tensor]:
    return [*_vectors(sizes), torch.tensor(2.0)]


def _sequences(sizes: Sizes) -> list[Tensor]:
    return [torch.randn(sizes["B"], sizes["T"], sizes["D"]) for _ in range(2)]


def _maps(sizes: Sizes, count: int = 1) -> list[Tensor]:
    side = sizes["side"]
    return [torch.randn(sizes["B"], sizes["D"], side, side) for _ in range(count)]


def _dim(sizes: Sizes) -> list[Tensor]:
    return [_vectors(sizes)[0] / sizes["D"] ** 0.5, *_maps(sizes, 1)]


def _st_dim(sizes: Sizes) -> list[Tensor]:
    return [torch.randn(sizes["B"], 2 * sizes["D"]), *_maps(sizes, 2)]


def _queue(sizes: Sizes) -> list[Any]:
    return [*_vectors(sizes, 1), F.normalize(torch.randn(sizes["K"], sizes["D"]), dim=1), 0.2]


QUEUE = {"B": 256, "D": 128, "K": 16384}
CASES = (
    Case("clip_loss", "CLIP", {"B": 2048, "D": 512}, _clip),
    Case("simclr_loss", "SimCLR", {"B": 1024, "D": 128}, _vectors, lambda sizes: [0.5]),
    Case(
        "cpc_loss",
        "CPC",
        {"B": 64, "T": 48, "D": 256},
        _sequences,
        lambda sizes: [nn.Linear(sizes["D"], sizes["D"]), 4],
    ),
    Case(
        "cpc_map_loss",
        "CPC on maps",
        {"B": 64, "D": 256, "side": 7},
        partial(_maps, count=2),
        lambda sizes: [2],
    ),
    Case("dim_loss", "Deep InfoMax", {"B": 128, "D": 512, "side": 7}, _dim),
    Case(
        "st_dim_loss",
        "ST-DIM",
        {"B": 64, "D": 128, "side": 9},
        _st_dim,
        lambda sizes: [nn.Linear(count * sizes["D"], sizes["D"]) for count in (2, 1)],
    ),
    Case("moco_loss", "MoCo", QUEUE, partial(_vectors, count=1), _queue),
    Case("queue_loss", "MoCo's queue and the batch", QUEUE, partial(_vectors, count=1), _queue),
)


def forward_backward(
    loss: Loss, features: Sequence[Tensor], others: Sequence[Any]
) -> tuple[Tensor, ...]:
    """The loss and the gradients of features and layers."""
    layers = (part for part in others if isinstance(part, nn.Module))
    weights = [weight for layer in layers for weight in layer.parameters()]
    value = loss(*features, *others)
    return (value.detach(), *torch.autograd.grad(value, [*features, *weights]))


def _moved(parts: Sequence[Any], *to: Any) -> list[Any]:
    return [part.to(*to) if isinstance(part, Tensor | nn.Module) else part for part in parts]


def measure_case(case: Case, out: Path, device: str = "cpu") -> bool:
    """Check, time and weigh one loss; False if ours is not the definition."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    made, others = case.features(case.sizes), _moved(case.others(case.sizes), device)
    features = [part.to(device).requires_grad_() for part in made]
    plain, ours = PLAIN[case.name], page_loss(case.name)
    providers = {DEFINITION: plain, COMPILED: torch.compile(plain, dynamic=False), OURS: ours}
    calls = {
        name: partial(forward_backward, loss, features, others) for name, loss in providers.items()
    }
    found = calls[OURS]()
    exact = [part.detach().double().requires_grad_() for part in features]
    truth = forward_backward(plain, exact, _moved(copy.deepcopy(others), torch.float64))
    difference = largest_difference(found, truth)
    print(f"  {case.name}: {difference:.1e} from float64, {TOLERANCE:.0e} allowed", flush=True)
    if not difference <= TOLERANCE:
        return False
    samples, busy = harness.timed(
        calls, device, warm_ups=1, measure=stopwatch(device, idle=True), repeats=REPEATS
    )
    gradients = sum(part.nbytes for part in found)
    for provider, times in samples.items():
        condition = harness.Condition(
            NAME, f"{device}-{case.name}", provider, "forward_backward", case.sizes, "float32"
        )
        size = allocated_peak(calls[provider], device) - gradients
        more: dict[str, Any] = {"note": busy, "clock": harness.WALL, "beside": samples}
        harness.record(out, condition, "time", "ms", times, device, **more)
        harness.record(out, condition, "extra_peak_memory", "bytes", [size], device)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Measure every loss; 1 if one of ours disagreed with its definition."""
    options = harness.parser(NAME, __doc__, "cpu", "cuda").parse_args(arguments)
    agreed = [measure_case(case, options.out, options.device) for case in CASES]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
