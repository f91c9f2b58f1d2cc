"""Images a second from disk to tensor on one core: the packed store beside ImageFolder.

    python -m benchmarks.bench_data --device cpu
    python -m benchmarks.bench_data --device cuda    # only what imagenet128 reads, onto the GPU

Writes JPEG files of photographs into a temporary folder, packs them, and reads random batches from
both with one thread, the page cache warm. Half a minute; exit status 1 if pixels disagree.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from amdim_fast.data.datasets import load_data
from amdim_fast.data.image_sets import Images
from amdim_fast.data.loader import training_batches
from amdim_fast.data.packed_store import PackedImages
from amdim_fast.data.packing import pack
from benchmarks import harness

NAME = "data"
IMAGES, SIDE, BATCH, QUALITY = 2048, 256, 256, 90
REPEATS, WARM_UPS, LOADER_BATCHES = 15, 2, 20
DECODED = "ImageFolder, JPEG decoded by Pillow"
STORED = "packed store"
REUSED = "packed store, into one buffer"
LOADED = "packed store, through the loader"
TRAINED = "packed store of 160 px, through the loader"
TRAINED_SIDE, TRAINED_BATCH = 160, 480  # what a step of imagenet128 reads


def write_photographs(folder: Path) -> None:
    """Crops of scikit-learn's two photographs as JPEG, one class."""
    from sklearn.datasets import load_sample_images

    (folder / "train" / "photo").mkdir(parents=True)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        photograph = photographs[number % len(photographs)]
        left, top = (int(rng.integers(side - SIDE + 1)) for side in photograph.size)
        crop = photograph.crop((left, top, left + SIDE, top + SIDE))
        crop.save(folder / "train" / "photo" / f"{number:05d}.jpg", quality=QUALITY)


def providers(folder: Path, images: PackedImages) -> dict[str, Callable[[Tensor], Images]]:
    """Callables that read the batch of an index."""
    files = ImageFolder(folder / "train")
    buffer = torch.empty(BATCH * SIDE * SIDE * 3, dtype=torch.uint8)

    def decoded(index: Tensor) -> Tensor:
        return torch.stack([torch.from_numpy(np.array(files[i][0])) for i in index.tolist()])

    def reused(index: Tensor) -> Tensor:
        images.read_into(index, buffer)
        return buffer.view(BATCH, SIDE, SIDE, 3)

    return {DECODED: decoded, STORED: images.batch, REUSED: reused}


def time_loader(images: PackedImages, batch: int, device: str = "cpu") -> tuple[list[float], str]:
    """Milliseconds per batch, requested without pause: its one thread reads all the time."""
    with training_batches(images, batch, seed=0, device=device) as loader:

        def run() -> None:
            for _ in range(LOADER_BATCHES):
                next(loader)

        samples, note = harness.timed({LOADED: run}, device, repeats=REPEATS, warm_ups=WARM_UPS)
    return [sample / LOADER_BATCHES for sample in samples[LOADED]], note


def packed(folder: Path, size: int | None = None) -> PackedImages:
    """The training images of a store of the files in ``folder``."""
    store = folder / f"store-{size}"
    pack(folder / "files", store, size=size, progress=False)
    images = load_data("folder", store).train
    assert isinstance(images, PackedImages)
    return images


def record_trained(folder: Path, out: Path, device: str) -> None:
    """A row of the loader at the batches that a step of imagenet128 reads."""
    batch = min(TRAINED_BATCH, IMAGES)
    milliseconds, note = time_loader(packed(folder, TRAINED_SIDE), batch, device)
    shapes = {"images": f"{batch} of {TRAINED_SIDE} x {TRAINED_SIDE}"}
    condition = harness.Condition(NAME, f"{device}-160px", TRAINED, "read", shapes, "uint8")
    rates = [1e3 * batch / sample for sample in milliseconds]
    more = {"note": note, "clock": harness.WALL}
    harness.record(out, condition, "rate", "images/s", rates, device, **more)


def main(arguments: list[str] | None = None) -> int:
    """Measure and append the rows; 1 if a batch of the store differs from the decoded one."""
    options = harness.parser(NAME, __doc__, "cpu", "cuda").parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photographs(folder / "files")
        if options.device == "cuda":
            record_trained(folder, options.out, "cuda")
            return 0
        images = packed(folder)
        calls = providers(folder / "files", images)
        index = torch.randperm(IMAGES)[:BATCH]
        expected = torch.stack(list(calls[DECODED](index)))
        for provider, call in calls.items():
            if not torch.equal(torch.stack(list(call(index))), expected):
                print(f"{provider} disagrees with ImageFolder")
                return 1
        random = {
            provider: lambda call=call: call(torch.randperm(IMAGES)[:BATCH])
            for provider, call in calls.items()
        }
        samples, note = harness.timed(random, repeats=REPEATS, warm_ups=WARM_UPS)
        samples[LOADED], _ = time_loader(images, BATCH)
        shapes = {"images": f"{BATCH} of {SIDE} x {SIDE}"}
        for provider, milliseconds in samples.items():
            condition = harness.Condition(NAME, "cpu-256px", provider, "read", shapes, "uint8")
            rates = [1e3 * BATCH / sample for sample in milliseconds]
            beside = random if provider in random else ()
            harness.record(
                options.out, condition, "rate", "images/s", rates, note=note, beside=beside
            )
        record_trained(folder, options.out, "cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
