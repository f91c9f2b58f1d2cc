"""Whether segmentation emerges: components against the digit in composites, at 7x7.

    python -m benchmarks.emergence train --seed 0      # minutes on two cores; likewise 1 and 2
    python -m benchmarks.emergence measure             # rows and the figure, from all seeds trained

A method assigns one of K labels to each of the 49 locations of an image. The label that overlaps
the digit best counts, chosen for each image ("best of each image") or once for all ("one for all").
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amdim_fast import save_checkpoint
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.model.amdim import AMDIM
from amdim_fast.segmentation.posterior import enlarge, overlay, posterior_maps
from amdim_fast.views.params import POLICIES
from amdim_fast.views.preprocessing import Preprocessing
from amdim_fast.views.sheets import write_png
from amdim_fast.views.two_views import TwoViews
from benchmarks import harness
from benchmarks.composites import Composites, load_composites, location_masks, overlaps

NAME = "emergence"
POLICY = POLICIES["digits"]
RUNS = harness.ROOT / "runs" / NAME
FIGURE = harness.ROOT / "benchmarks" / "plots" / "emergence.png"
SHOWN, ZOOM, GAP = 12, 3, 4
TRAINED, UNTRAINED = "trained encoder", "untrained encoder"


@dataclass(frozen=True)
class Settings:
    """One run."""

    components: int = 4
    tau: float = 5.0
    alpha: float = 0.2
    steps: int = 600
    batch_size: int = 128
    ndf: int = 32
    n_rkhs: int = 128
    depth: int = 2
    tclip: float = 20.0
    learning_rate: float = 5e-4
    warmup_steps: int = 50


def make_model(settings: Settings, seed: int) -> AMDIM:
    """The model at random weights."""
    torch.manual_seed(seed)
    return AMDIM(
        *(POLICY.size, settings.ndf, settings.n_rkhs, settings.depth),
        tclip=settings.tclip,
        components=settings.components,
        tau=settings.tau,
        alpha=settings.alpha,
    )


def train(model: AMDIM, images: Tensor, settings: Settings, seed: int) -> None:
    """All steps: Adam, linear warm-up, then a constant rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, settings.learning_rate, betas=(0.8, 0.999))
    generator = torch.Generator().manual_seed(seed)
    two_views = TwoViews(POLICY, channels_last=True)
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(1, settings.steps + 1):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(
            1.0, step / settings.warmup_steps
        )
        if len(order) < settings.batch_size:
            order = torch.randperm(len(images), generator=generator)
        index, order = order[: settings.batch_size], order[settings.batch_size :]
        views = two_views(images[index], generator=generator, sample_index=index)
        output = model(*views, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()
        if step % 50 == 0:
            usage = torch.special.entr(output.usage).sum()
            print(
                f"step {step}: 1->7 {output.loss_1t7:.3f}, entropy {output.entropy:.3f},"
                f" usage entropy {usage:.3f}",
                flush=True,
            )


@torch.no_grad()
def features(model: AMDIM, images: Tensor) -> tuple[Tensor, Tensor]:
    """Components [K, N, D] and 7x7 maps [N, D, 7, 7] in evaluation mode."""
    assert model.mixture is not None
    model.eval()
    components, maps = [], []
    for batch in images.split(250):
        output = model.encoder(Preprocessing.of(POLICY)(batch))
        components.append(model.mixture(output.r1))
        maps.append(output.r7)
    return torch.cat(components, 1), torch.cat(maps)


def k_means(vectors: Tensor, components: int, seed: int, *, each: bool = False) -> Tensor:
    """Labels int64 [N, 7, 7] of [N, C, 7, 7], clustered together or each image by itself."""
    from sklearn.cluster import KMeans

    images = vectors.permute(0, 2, 3, 1).flatten(1, 2)
    groups = images if each else images.flatten(0, 1)[None]
    estimator = KMeans(components, n_init=3, random_state=seed)
    labels = [torch.from_numpy(estimator.fit_predict(group.numpy())) for group in groups]
    return torch.cat(labels).long().view(len(vectors), 7, 7)


def labelings(
    models: dict[str, AMDIM], test: Composites, settings: Settings, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Labels [N, 7, 7] of every method, and the trained model's posterior [N, K, 7, 7]."""
    count = settings.components
    found: dict[str, Tensor] = {}
    posteriors = {}
    for name, model in models.items():
        components, maps = features(model, test.images)
        posteriors[name] = posterior_maps(components, maps, tau=settings.tau, clip=settings.tclip)
        found[f"components, {name}"] = posteriors[name].argmax(1)
        found[f"k-means on 7x7 features, {name}"] = k_means(maps, count, seed)
        found[f"k-means within each image, {name}"] = k_means(maps, count, seed, each=True)
    inner = test.images.permute(0, 3, 1, 2)[:, :, 2:-2, 2:-2].float()
    cells = F.avg_pool2d(inner, 4)
    found["k-means on mean colours"] = k_means(cells, count, seed)
    found["k-means within each image, mean colours"] = k_means(cells, count, seed, each=True)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(test.images), 7, 7)
    found["random labels"] = torch.randint(0, count, shape, generator=generator)
    return found, posteriors[TRAINED]


def figures(labels: dict[str, Tensor], masks: Tensor, components: int) -> dict[str, Any]:
    """Percentages of intersection over union of each method, by metric."""
    found = {name: overlaps(segments, masks, components) for name, segments in labels.items()}
    return {
        name: {
            "IoU, best of each image": 100 * overlap.max(1).values.mean().item(),
            "IoU, one for all": 100 * overlap.mean(0).max().item(),
        }
        for name, overlap in found.items()
    }


def draw(test: Composites, posterior: Tensor, path: Path) -> None:
    """Twelve evenly spaced held-out images: picture, digit, segmentation."""
    index = torch.arange(SHOWN) * (len(test.images) // SHOWN)
    dense = enlarge(posterior[index], POLICY.size)

    def zoomed(images: Tensor) -> Tensor:
        big = images.repeat_interleave(ZOOM, 1).repeat_interleave(ZOOM, 2)
        return F.pad(big, (0, 0, GAP, GAP, GAP, GAP), value=255).transpose(0, 1).flatten(1, 2)

    pictures = test.images[index]
    digits = (255 * test.masks[index]).to(torch.uint8)[..., None].expand(-1, -1, -1, 3)
    pairs = zip(pictures, dense, strict=True)
    shades = torch.stack([overlay(image, found, opacity=0.6) for image, found in pairs])
    write_png(path, torch.cat([zoomed(images) for images in (pictures, shades, digits)]))


def measure(runs: list[Path], out: Path, figure: Path) -> None:
    """Rows of all runs, seeds as samples, and the figure of the first."""
    samples: dict[tuple[str, str], list[float]] = {}
    seeds: list[int] = []
    for path in runs:
        contents = read_checkpoint(path)
        settings, seed = Settings(**contents["settings"]), contents["seed"]
        models = {TRAINED: make_model(settings, seed), UNTRAINED: make_model(settings, seed)}
        models[TRAINED].load_state_dict(contents["model"])
        _, test = load_composites(seed)
        labels, posterior = labelings(models, test, settings, seed)
        found = figures(labels, location_masks(test.masks), settings.components)
        usage = torch.special.entr(posterior.mean(dim=(0, 2, 3))).sum().item()
        share = 100 * usage / math.log(settings.components)
        found[f"components, {TRAINED}"]["usage entropy / log K"] = share
        for method, metrics in found.items():
            for metric, value in metrics.items():
                samples.setdefault((method, metric), []).append(value)
        if not seeds:
            draw(test, posterior, figure)
        seeds.append(seed)
    names = {"components": "K", "batch_size": "B", "n_rkhs": "D"}
    shapes = {names.get(name, name): value for name, value in asdict(settings).items()}
    for (method, metric), values in samples.items():
        condition = harness.Condition(
            NAME, "composites", method, "held-out", {**shapes, "seeds": seeds}, "float32"
        )
        row = harness.make_row(condition, metric, "%", values, device=harness.device_name("cpu"))
        harness.append_row(row, out)
        print(f"{method:42s} {metric:24s} {row['q50']:5.1f} %  {[round(v, 1) for v in values]}")


def _train(parsed: argparse.Namespace) -> None:
    settings = Settings(**{field.name: getattr(parsed, field.name) for field in fields(Settings)})
    data, _ = load_composites(parsed.seed)
    model = make_model(settings, parsed.seed)
    train(model, data.images, settings, parsed.seed)
    parsed.runs.mkdir(parents=True, exist_ok=True)
    path = parsed.runs / f"seed{parsed.seed}.pt"
    save_checkpoint(path, model, settings=asdict(settings), seed=parsed.seed)


def _measure(parsed: argparse.Namespace) -> None:
    runs = sorted(parsed.runs.glob("seed*.pt"))
    if not runs:
        raise FileNotFoundError(f"{parsed.runs} has no runs; train some first")
    measure(runs, parsed.out, parsed.figure)


def main(arguments: list[str] | None = None) -> int:
    """Train one seed, or measure all that were trained; 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=RUNS)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.set_defaults(run=_train)
    command.add_argument("--seed", type=int, default=0)
    for name, value in asdict(Settings()).items():
        command.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    command = commands.add_parser("measure")
    command.set_defaults(run=_measure)
    command.add_argument("--out", type=Path, default=harness.RESULTS / f"{NAME}.jsonl")
    command.add_argument("--figure", type=Path, default=FIGURE)
    parsed = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = parsed.run
    run(parsed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
