"""Whether segmentation emerges: components against the digit in composites, at 7x7.

    python -m benchmarks.emergence train --seed 1      # minutes on two cores; likewise 2 and 3
    python -m benchmarks.emergence measure             # rows and the figure, from all seeds trained

A method assigns one of K labels to each of the 49 locations of an image. The label that overlaps
the digit best counts, chosen for each image ("best of each image") or once for all ("one for all").
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amdim_fast import load_checkpoint, save_checkpoint
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.data.loader import training_batches
from amdim_fast.model.amdim import AMDIM
from amdim_fast.model.frozen import eval_mode
from amdim_fast.segmentation.posterior import enlarge, overlay, posterior_maps
from amdim_fast.training.randomness import seed_everything
from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.step import Training, build_model
from amdim_fast.views.params import POLICIES
from amdim_fast.views.preprocessing import Preprocessing
from amdim_fast.views.sheets import write_png
from benchmarks import harness
from benchmarks.composites import Composites, load_composites, location_masks, overlaps

NAME = "emergence"
RECIPE = replace(RECIPES["digits"], mixture=4, precision="float32")
POLICY = POLICIES[RECIPE.policy]
RUNS = harness.ROOT / "runs" / NAME
FIGURE = harness.ROOT / "benchmarks" / "plots" / "emergence.png"
SHOWN, ZOOM, GAP = 12, 3, 4
TRAINED, UNTRAINED = "trained encoder", "untrained encoder"


def make_model(seed: int) -> AMDIM:
    seed_everything(seed)
    return build_model(RECIPE, None)


def train(seed: int) -> AMDIM:
    """The model after all steps of the recipe on the training composites of a seed."""
    images = TensorImages(load_composites(seed)[0].images)
    training = Training(make_model(seed), RECIPE, len(images), seed)
    with training_batches(images, RECIPE.batch_size, seed=seed) as loader:
        while training.step < RECIPE.steps:
            batch = next(loader)
            values = training.update(training.views(batch), batch.labels).tolist()
            if training.step % 50 == 0:
                found = zip(training.names, values, strict=True)
                shown = ", ".join(f"{name} {value:.3f}" for name, value in found)
                print(f"step {training.step}: {shown}", flush=True)
    return training.model


def features(model: AMDIM, images: Tensor) -> tuple[Tensor, Tensor]:
    """Components [K, N, D] and 7x7 maps [N, D, 7, 7] in evaluation mode."""
    assert model.mixture is not None
    components, maps = [], []
    with eval_mode(model):
        for batch in images.split(250):
            output = model.encoder(Preprocessing.of(POLICY)(batch))
            components.append(model.mixture(output.r1))
            maps.append(output.r7)
    return torch.cat(components, 1), torch.cat(maps)


def k_means(vectors: Tensor, seed: int, *, each: bool = False) -> Tensor:
    """Labels int64 [N, 7, 7] of [N, C, 7, 7], clustered together or each image by itself."""
    from sklearn.cluster import KMeans

    images = vectors.permute(0, 2, 3, 1).flatten(1, 2)
    clustered = images if each else images.flatten(0, 1)[None]
    estimator = KMeans(RECIPE.mixture, n_init=3, random_state=seed)
    labels = [torch.from_numpy(estimator.fit_predict(points.numpy())) for points in clustered]
    return torch.cat(labels).long().view(len(vectors), 7, 7)


def labelings(
    models: dict[str, AMDIM], test: Composites, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Labels [N, 7, 7] of every method, and the trained model's posterior [N, K, 7, 7]."""
    found: dict[str, Tensor] = {}
    posteriors = {}
    for name, model in models.items():
        components, maps = features(model, test.images)
        posteriors[name] = posterior_maps(components, maps, tau=RECIPE.tau, clip=RECIPE.tclip)
        found[f"components, {name}"] = posteriors[name].argmax(1)
        found[f"k-means on 7x7 features, {name}"] = k_means(maps, seed)
        found[f"k-means within each image, {name}"] = k_means(maps, seed, each=True)
    cells = F.avg_pool2d(test.images.permute(0, 3, 1, 2)[:, :, 2:-2, 2:-2].float(), 4)
    found["k-means on mean colors"] = k_means(cells, seed)
    found["k-means within each image, mean colors"] = k_means(cells, seed, each=True)
    generator, shape = torch.Generator().manual_seed(seed), (len(test.images), 7, 7)
    found["random labels"] = torch.randint(0, RECIPE.mixture, shape, generator=generator)
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


def measure(runs: dict[int, Path], out: Path, figure: Path) -> None:
    """Rows of the checkpoints of all seeds, which are the samples, and the figure of the first."""
    samples: dict[tuple[str, str], list[float]] = {}
    for seed, path in runs.items():
        models = {TRAINED: load_checkpoint(path), UNTRAINED: make_model(seed)}
        test = load_composites(seed)[1]
        labels, posterior = labelings(models, test, seed)
        found = figures(labels, location_masks(test.masks), RECIPE.mixture)
        usage = torch.special.entr(posterior.mean(dim=(0, 2, 3))).sum().item()
        share = 100 * usage / math.log(RECIPE.mixture)
        found[f"components, {TRAINED}"]["usage entropy / log K"] = share
        for method, metrics in found.items():
            for metric, value in metrics.items():
                samples.setdefault((method, metric), []).append(value)
        if seed == min(runs):
            draw(test, posterior, figure)
    shapes = {"K": RECIPE.mixture, "tau": RECIPE.tau, "steps": RECIPE.steps, "seeds": list(runs)}
    for (method, metric), values in samples.items():
        condition = harness.Condition(
            NAME, "composites", method, "held-out", shapes | harness.sizes(RECIPE), "float32"
        )
        harness.record(out, condition, metric, "%", values)


def main(arguments: list[str] | None = None) -> int:
    """Train one seed, or measure all that were trained; 0."""
    parser = harness.parser(NAME, __doc__)
    parser.add_argument("command", choices=("train", "measure"))
    parser.add_argument("--seed", type=int, default=0, help="to train")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the trained models")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parsed = parser.parse_args(arguments)
    if parsed.command == "train":
        parsed.runs.mkdir(parents=True, exist_ok=True)
        save_checkpoint(parsed.runs / f"seed{parsed.seed}.pt", train(parsed.seed))
        return 0
    seeds = sorted(int(path.stem.removeprefix("seed")) for path in parsed.runs.glob("seed*.pt"))
    if not seeds:
        raise FileNotFoundError(f"{parsed.runs} has no trained models; train some first")
    measure({seed: parsed.runs / f"seed{seed}.pt" for seed in seeds}, parsed.out, parsed.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
