"""A training step of the recipe digits with K components, beside the plain one.

python -m benchmarks.bench_mixture
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from amdim_fast.model.amdim import AMDIM
from amdim_fast.nce.mixture import MixtureNCELoss
from amdim_fast.nce.reference_mixture import multiscale_mixture
from amdim_fast.training.recipes import RECIPES
from benchmarks import harness

NAME = "mixture"
# None is the plain step.
PROVIDERS = {"plain": None, "K = 2": 2, "K = 4": 4, "K = 8": 8}
SIZE = 32
TOLERANCE = 1e-4
REPEATS = 15


def make_model(components: int | None) -> AMDIM:
    """The model of the recipe, from one seed."""
    recipe = RECIPES["digits"]
    torch.manual_seed(0)
    widths = (recipe.ndf, recipe.n_rkhs, recipe.depth)
    return AMDIM(SIZE, *widths, tclip=recipe.tclip, components=components)


def make_step(components: int | None, views: Tensor) -> Callable[[], object]:
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
    picked = tuple(torch.randint(0, 25, (len(views[0]),)) for _ in range(2))
    loss = model.g2l_loss
    assert isinstance(loss, MixtureNCELoss)
    ours = loss(*maps[0], *maps[1], locations=picked)[:4]
    options = {"tau": loss.tau, "alpha": loss.alpha, "clip": RECIPES["digits"].tclip}
    truth = multiscale_mixture(*maps, picked, **options)  # type: ignore[arg-type]
    found, expected = (
        (*values, *torch.autograd.grad(sum(values, r7.new_zeros(())), r7))
        for values in (ours, truth)
    )
    return harness.largest_difference(found, expected)


def main(arguments: list[str] | None = None) -> int:
    """Check, then append one row a provider; 1 if a provider disagrees with the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=RECIPES["digits"].batch_size)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / f"{NAME}.jsonl")
    options = parser.parse_args(arguments)
    recipe = RECIPES["digits"]
    views = torch.randn(2, options.images, 3, SIZE, SIZE)
    wrong = []
    for provider, components in PROVIDERS.items():
        if components is not None and not (found := difference(components, views)) <= TOLERANCE:
            print(f"{provider}: {found:.1e} from the reference, {TOLERANCE:.0e} allowed")
            wrong.append(provider)
    calls = {p: make_step(k, views) for p, k in PROVIDERS.items() if p not in wrong}
    other_work = harness.OtherWork()
    samples = harness.time_interleaved(
        calls, repeats=options.repeats, warm_ups=2, measure=harness.stopwatch("cpu")
    )
    share = other_work.share()
    note = f"BUSY MACHINE: other work took {share:.0%} of the CPUs" if share > 0.03 else ""
    shapes = {"B": options.images, "D": recipe.n_rkhs, "ndf": recipe.ndf, "depth": recipe.depth}
    for provider, times in samples.items():
        condition = harness.Condition(NAME, "digits", provider, "step", shapes, "float32")
        device = harness.device_name("cpu")
        row = harness.make_row(condition, "time", "ms", times, device=device, note=note)
        harness.append_row(row, options.out)
        print(f"{provider}: {row['q50']:.0f} ms, n = {row['n']} {note}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
