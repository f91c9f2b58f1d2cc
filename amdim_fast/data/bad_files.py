"""Which image files of a data set cannot be decoded."""

from __future__ import annotations

import contextlib
from functools import partial

from amdim_fast.data.decoding import BadImage
from amdim_fast.data.image_sets import FileImages
from amdim_fast.data.progress import progress_bar
from amdim_fast.data.workers import ordered_map, worker_count


def find_bad(
    images: FileImages, *, workers: int | None = None, progress: bool = True
) -> dict[int, str]:
    """Decode every file; returns the index of each bad one with its sentence.

    Raises:
        OSError: a file cannot be read at all.
    """
    workers = worker_count(workers)
    bad = {}
    indices = range(len(images))
    fault = partial(_fault, images)
    with (
        contextlib.closing(ordered_map(fault, indices, workers=workers, ahead=16)) as faults,
        progress_bar(iterable=faults, desc="checking", total=len(images), shown=progress) as bar,
    ):
        for index, sentence in enumerate(bar):
            if sentence is not None:
                bad[index] = sentence
    return bad


def _fault(images: FileImages, index: int) -> str | None:
    try:
        images.decoder(images.source(index))
    except BadImage as error:
        return str(error)
    return None
