"""A training step of the recipe digits with K components, beside the plain one.

python -m benchmarks.bench_mixture
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from amdim_fast.bench.measure import largest_difference
from amdim_fast.model.amdim import AMDIM
from amdim_fast.nce.mixture import MixtureNCELoss
from amdim_fast.nce.reference_mixture import multiscale_mixture
from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.step import build_model
from amdim_fast.views.params import POLICIES
from benchmarks import harness

NAME = "mixture"
RECIPE = RECIPES["digits"]
SIDE = POLICIES[RECIPE.policy].size
PROVIDERS = {"plain": 0, "K = 2": 2, "K = 4": 4, "K = 8": 8}
TOLERANCE = 1e-4
IMAGES, REPEATS = RECIPE.batch_size, 15


def make_model(components: int) -> AMDIM:
    """The model of the recipe, from one seed."""
    torch.manual_seed(0)
    return build_model(replace(RECIPE, mixture=components), None)


def make_step(components: int, views: Tensor) -> Callable[[], object]:
    """Forward, backward and Adam on two views [2, B, 3, 32, 32]."""
    model = make_model(components)
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = model(*views).loss
        loss.backward()
        optimizer.step()
        return loss

    return step


def difference(components: int, views: Tensor) -> float:
    """Largest difference of the losses and gradients of r7 from the reference."""
    model = make_model(components)
    with torch.no_grad():
        first, second = (model.encoder(view) for view in views)
        sources = model.mixture(first.r1), model.mixture(second.r1)  # type: ignore[misc]
    r7 = first.r7.requires_grad_()
    maps = ((sources[0], first.r5, r7), (sources[1], second.r5, second.r7))
    locations = tuple(torch.randint(0, 25, (len(views[0]),)) for _ in range(2))
    loss = model.g2l_loss
    assert isinstance(loss, MixtureNCELoss)
    ours = loss(*maps[0], *maps[1], locations=locations)[:4]
    options = {"tau": loss.tau, "alpha": loss.alpha, "clip": RECIPE.tclip}
    truth = multiscale_mixture(*maps, locations, **options)  # type: ignore[arg-type]
    found, expected = (
        (*values, *torch.autograd.grad(sum(values, r7.new_zeros(())), r7))
        for values in (ours, truth)
    )
    return largest_difference(found, expected)


def main(arguments: list[str] | None = None) -> int:
    """Check, then append one row a provider; 1 if a provider disagrees with the reference."""
    options = harness.parser(NAME, __doc__).parse_args(arguments)
    views = torch.randn(2, IMAGES, 3, SIDE, SIDE)
    wrong = []
    for provider, components in PROVIDERS.items():
        if components and not (found := difference(components, views)) <= TOLERANCE:
            print(f"{provider}: {found:.1e} from the reference, {TOLERANCE:.0e} allowed")
            wrong.append(provider)
    calls = {p: make_step(k, views) for p, k in PROVIDERS.items() if p not in wrong}
    samples, note = harness.timed(calls, repeats=REPEATS, warm_ups=2)
    shapes = {**harness.sizes(RECIPE), "B": IMAGES}
    for provider, times in samples.items():
        condition = harness.Condition(NAME, "digits", provider, "step", shapes, "float32")
        harness.record(options.out, condition, "time", "ms", times, note=note, beside=samples)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
