"""Features of whole image sets from a frozen encoder, and the original's transductive BatchNorm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from amdim_fast.data.image_sets import Images, ImageSet
from amdim_fast.data.loader import Loader, ordered_batches
from amdim_fast.data.progress import progress_bar
from amdim_fast.model.backbone import AnyEncoder
from amdim_fast.model.frozen import encode
from amdim_fast.views.compiled import views_device
from amdim_fast.views.preprocessing import Preprocessing

ADAPTING_BATCHES = 50
ADAPTING_BATCH_SIZE = 200
PIXEL_BATCH_SIZE = 250


def extract_features(
    encoder: AnyEncoder,
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 250,
    workers: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Global features of all images in evaluation mode, float32 [N, D] on the CPU.

    Args:
        encoder: left in the mode it was in.
        images: N images.
        preprocessing: from image to input.
        batch_size: images encoded at a time.
        workers: processes that decode files; None uses every CPU, 0 none.
        progress: whether to show a bar.

    Raises:
        FloatingPointError: a feature is not finite; names its image.
        BadImage, OSError: an image cannot be read.
    """
    features = torch.empty(len(images), encoder.n_rkhs)
    begin = 0
    parts = feature_parts(
        encoder, images, preprocessing, batch_size=batch_size, workers=workers, progress=progress
    )
    for part in parts:
        features[begin : begin + len(part)] = part
        begin += len(part)
    return features


def feature_parts(
    encoder: AnyEncoder,
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 250,
    workers: int | None = None,
    progress: bool = False,
) -> Iterator[Tensor]:
    """``extract_features`` in parts, float32 [n, D] on the CPU, in the order of the images."""
    device = views_device(encoder.rkhs_block_5.conv1.weight.device)
    with (
        ordered_batches(images, batch_size, device=device, workers=workers) as batches,
        progress_bar(total=len(images), desc="features", unit="image", shown=progress) as bar,
    ):
        for batch in batches:
            part = encode(encoder, batch.images, preprocessing).float().cpu()
            finite = part.isfinite().all(1)
            if not finite.all():
                first = int(batch.indices[~finite][0])
                raise FloatingPointError(
                    f"the features of {images.name(first)} are not finite; the encoder's weights"
                    " are damaged or diverged"
                )
            bar.update(len(part))
            yield part


def seen_pixels(images: Images, preprocessing: Preprocessing) -> Tensor:
    """The encoder's input before it is normalized, uint8 [n, size, size, C], of uint8 images."""
    channels = len(preprocessing.mean)
    plain = replace(preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels)
    return plain(images).mul(255).round().byte().permute(0, 2, 3, 1)


def extract_pixels(images: ImageSet, preprocessing: Preprocessing) -> Tensor:
    """``seen_pixels`` of all images, flat and as floats: float32 [N, C size size], 0 to 255.

    Raises:
        BadImage, OSError: an image cannot be read.
    """
    pixels = torch.empty(len(images), len(preprocessing.mean) * preprocessing.size**2)
    with ordered_batches(images, PIXEL_BATCH_SIZE) as batches:
        for batch in batches:
            pixels[batch.indices] = seen_pixels(batch.images, preprocessing).flatten(1).float()
    return pixels


def adapting_batches(images: int) -> int:
    """The number of batches that ``adapt_batch_norm`` makes of this many test images.

    Raises:
        ValueError: there are fewer than 200.
    """
    if images < ADAPTING_BATCH_SIZE:
        raise ValueError(
            f"transductive_bn is on for {images} test images; there must be"
            f" {ADAPTING_BATCH_SIZE} or more, the original's batch"
        )
    return min(images // ADAPTING_BATCH_SIZE, ADAPTING_BATCHES)


@torch.no_grad()
def adapt_batch_norm(
    encoder: AnyEncoder,
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    also: Callable[[Tensor], object] | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> int:
    """Move the running statistics of ``encoder``, in place, toward those of ``images``.

    The public code does this before it scores: up to 50 batches of 200 images, in random order,
    pass through the encoder in training mode.

    Args:
        encoder: changed; left in training mode.
        images: the test images.
        preprocessing: from image to input.
        also: called with the features of each batch.
        seed: seed of the order.
        workers: as in ``extract_features``.

    Returns:
        The number of batches.

    Raises:
        ValueError: there are fewer than 200 images.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    batches = adapting_batches(len(images))
    weight = encoder.rkhs_block_5.conv1.weight
    device = views_device(weight.device)
    encoder.train()
    indices = order[: batches * ADAPTING_BATCH_SIZE].split(ADAPTING_BATCH_SIZE)
    with Loader(images, indices, device=device, workers=workers) as loader:
        for batch in loader:
            r1 = encoder(preprocessing(batch.images).to(weight.device, weight.dtype)).r1
            if also is not None:
                also(r1)
    return batches
