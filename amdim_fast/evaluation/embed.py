"""``embed``: features of all images of a data set, into a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amdim_fast.checks import whole_number
from amdim_fast.data.channels import decoder_of
from amdim_fast.data.datasets import DATA_SETS, ImageData, describe_data, load_data
from amdim_fast.data.find import is_images_file
from amdim_fast.data.image_sets import FileImages, ImageSet
from amdim_fast.devices import execution_line
from amdim_fast.evaluation.evaluate import load_model
from amdim_fast.evaluation.feature_files import ImageTable, write_features
from amdim_fast.evaluation.features import feature_parts
from amdim_fast.model.amdim import AMDIM
from amdim_fast.model.frozen import frozen_facts
from amdim_fast.views.sheets import check_new


@dataclass(frozen=True)
class Embedded:
    """A file of features [images, width] that ``embed`` wrote.

    Attributes:
        skipped: one sentence for each image file that was left out.
    """

    path: Path
    images: int
    width: int
    skipped: tuple[str, ...]


def embed(
    model: AMDIM | str | os.PathLike[str],
    data: ImageData | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] = "data",
    download: bool = False,
    skip_bad: bool = False,
    max_pixels: int | None = None,
    policy: str | None = None,
    batch_size: int = 250,
    workers: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Embedded:
    """Write the global features of all images of a data set, with their names and labels.

    Features are those of ``AMDIM.encode``: of one test-time view of each image, by the encoder in
    evaluation mode. Training images come first, then test images. ``write_features`` describes
    the file.

    Args:
        model: an AMDIM, or a file or folder that ``AMDIM.from_pretrained`` reads.
        data: an ImageData; whatever ``load_data`` takes as ``root`` of ``folder``; an image file;
            or a name that ``load_data`` reads with the next two arguments, unless there is such a
            folder.
        data_dir: folder of the data set.
        download: whether to fetch what is missing there.
        skip_bad: whether to leave out image files that cannot be decoded.
        max_pixels: as in ``load_data``.
        out: file to write, .npz or .parquet; the latter needs pyarrow.
        policy: name in ``POLICIES`` of the test-time transform; by default the model's own.
        batch_size: images encoded at a time.
        workers: processes that decode files; None uses every CPU, 0 none.
        device: where the encoder runs; by default where the model is or, for a file, cuda where
            torch finds a GPU, else cpu.
        overwrite: whether to replace the file if it exists.
        progress: whether to say first what runs where, and to show bars.

    Raises:
        FileExistsError: out exists. ValueError: out has another suffix, or an argument is out of
            range. ModuleNotFoundError: pyarrow is not installed. FloatingPointError: a feature is
            not finite. Also what ``load_data`` and ``AMDIM.from_pretrained`` raise.

    Deterministic for a device, library versions and number of threads. Features go to the file as
    they are made: memory does not grow with their number.
    """
    out = Path(out)
    whole_number("batch_size", batch_size)
    check_new(out, overwrite=overwrite)
    ImageTable([], [], None, ()).check(out)
    loaded, _ = load_model(model, policy, device)
    if not isinstance(data, ImageData):
        data = _data_of(
            data,
            data_dir,
            download=download,
            skip_bad=skip_bad,
            max_pixels=max_pixels,
            channels=loaded.model.encoder.in_channels,
            workers=workers,
            progress=progress,
        )
    splits = {"train": data.train} | ({} if data.test is None else {"test": data.test})
    table = _table_of(splits, data.classes)
    table.check(out)
    encoder = loaded.model.encoder
    if progress:
        print(execution_line(frozen_facts(encoder)), describe_data(data), sep="\n", file=sys.stderr)

    def parts() -> Iterator[Tensor]:
        for images in splits.values():
            yield from feature_parts(
                encoder,
                images,
                loaded.preprocessing,
                batch_size=batch_size,
                workers=workers,
                progress=progress,
            )

    write_features(out, table, parts(), encoder.n_rkhs)
    return Embedded(out, len(table.names), encoder.n_rkhs, data.skipped)


def _table_of(splits: dict[str, ImageSet], classes: tuple[str, ...]) -> ImageTable:
    labels = torch.cat([images.labels for images in splits.values()])
    return ImageTable(
        names=[name for images in splits.values() for name in images.names()],
        splits=[split for split, images in splits.items() for _ in range(len(images))],
        labels=labels if classes else None,
        classes=classes,
    )


def _data_of(
    data: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    download: bool,
    skip_bad: bool,
    max_pixels: int | None,
    channels: int,
    workers: int | None,
    progress: bool,
) -> ImageData:
    path = Path(data).expanduser()
    named = str(data) in DATA_SETS and not path.exists()
    if path.is_file() and not is_images_file(path):
        decoder = decoder_of(channels, max_pixels=max_pixels)
        images = FileImages(path.parent, [path.name], None, decoder, channels=channels)
        return ImageData(images, None, None, ())
    return load_data(
        str(data) if named else "folder",
        data_dir if named else path,
        download=download and named,
        skip_bad=skip_bad,
        max_pixels=max_pixels,
        channels=channels,
        workers=workers,
        progress=progress,
    )
