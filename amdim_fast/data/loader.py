"""Batches on the training device, read ahead; a pure function of seed and step."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amdim_fast.data.buffers import Buffers
from amdim_fast.data.image_sets import Images, ImageSet, StoredImages, read_flat, unpack
from amdim_fast.data.workers import ordered_map, worker_count


class Batch(NamedTuple):
    """Images of one step.

    Attributes:
        indices: int64 [n] on the CPU, into the image set.
        images: uint8 [n, H, W, 3], or a list of n [H, W, 3] if sizes differ, on the device.
        labels: int64 [n] on the device; -1 for unknown classes.
    """

    indices: Tensor
    images: Images
    labels: Tensor


def training_indices(
    length: int,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Tensor]:
    """Endless int64 indices [batch_size / world_size] of one rank, from step ``start`` on.

    Each epoch is a permutation drawn from (seed, epoch); its incomplete last batch is dropped. The
    parts of the ranks, concatenated, are the batch of a step, the same for every ``world_size``.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 1 <= batch_size <= length:
        raise ValueError(
            f"batch_size is {batch_size}; it must be from 1 to {length}, the number of images"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}; it must be from 0 to {world_size - 1}")
    if batch_size % world_size:
        raise ValueError(
            f"batch_size is {batch_size}; it must be a multiple of the {world_size} processes"
        )
    for name, value in (("seed", seed), ("start", start)):
        if value < 0:
            raise ValueError(f"{name} is {value}; it must be 0 or more")
    return _training_indices(length, batch_size, seed, start, rank, world_size)


def _training_indices(
    length: int, batch_size: int, seed: int, start: int, rank: int, world_size: int
) -> Iterator[Tensor]:
    share = batch_size // world_size
    epoch, step = divmod(start, length // batch_size)
    while True:
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(length))
        for first in range(
            step * batch_size + rank * share, length // batch_size * batch_size, batch_size
        ):
            yield order[first : first + share]
        epoch, step = epoch + 1, 0


class Loader(Iterator[Batch]):
    """Batches of given indices, read ahead by a thread; worker processes decode image files.

    For a CUDA device, batches pass through pinned memory and are copied on a separate stream; each
    is ready for the stream that is current when it is returned. Batches are the same bit for bit
    with any ``workers`` and ``prefetch``. A context manager; ``close`` ends the thread and the
    processes, and so does dropping the last reference.

    Args:
        images: an ImageSet.
        indices: int64 index tensors, one per batch; read ahead.
        device: where images and labels go.
        workers: processes that decode files; 0 decodes in the thread, None uses every CPU. Sets in
            memory and packed stores use none.
        prefetch: batches ready ahead of the consumer, 1 or more.

    Attributes:
        waited: seconds that the consumer has spent waiting for batches.

    ``next`` raises BadImage or OSError, which name the file or shard that failed, and
    ChildProcessError if a worker died; the loader is then closed.
    """

    def __init__(
        self,
        images: ImageSet,
        indices: Iterable[Tensor],
        *,
        device: str | torch.device = "cpu",
        workers: int | None = None,
        prefetch: int = 2,
    ) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch is {prefetch}; it must be 1 or more")
        self.waited = 0.0
        self._device = torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._ready: queue.Queue[_Item] = queue.Queue(prefetch)
        stop = threading.Event()
        workers = worker_count(workers)
        thread = threading.Thread(
            target=_fill,
            args=(images, indices, self._device, workers, self._ready, stop),
            name="amdim_fast loader",
            daemon=True,
        )
        thread.start()
        self.close = weakref.finalize(self, _end, thread, self._ready, stop)
        """End the thread and the processes; ``next`` raises StopIteration from then on."""

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __next__(self) -> Batch:
        """The next batch; waits for it."""
        if not self.close.alive:
            raise StopIteration
        started = time.perf_counter()
        item = self._ready.get()
        self.waited += time.perf_counter() - started
        if isinstance(item, _Ready):
            return _arrived(item, self._device)
        self.close()
        if item is None:
            raise StopIteration
        raise item


class _Ready(NamedTuple):
    indices: Tensor
    flat: Tensor
    shapes: Tensor
    labels: Tensor
    copied: torch.cuda.Event | None


_Item = _Ready | BaseException | None


def training_batches(
    images: ImageSet,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> Loader:
    """``Loader`` over ``training_indices``; ``options`` are the loader's."""
    indices = training_indices(
        len(images), batch_size, seed=seed, start=start, rank=rank, world_size=world_size
    )
    return Loader(images, indices, **options)


def ordered_batches(images: ImageSet, batch_size: int, **options: Any) -> Loader:
    """Every image once, in order, the last batch smaller; ``options`` are the loader's."""
    return Loader(images, torch.arange(len(images)).split(batch_size), **options)


def _fill(
    images: ImageSet,
    indices: Iterable[Tensor],
    device: torch.device,
    workers: int,
    ready: queue.Queue[_Item],
    stop: threading.Event,
) -> None:
    last: _Item = None
    try:
        pinned = device.type == "cuda"
        if pinned:
            torch.cuda.set_device(device)
        # Torch keeps pinned memory, too, and uses it again once copies from it have run.
        buffer = partial(torch.empty, dtype=torch.uint8, pin_memory=True) if pinned else Buffers()
        send = _to_cuda(device) if pinned else _to(device)
        with contextlib.closing(_read(images, indices, workers, buffer)) as read:
            for index, flat, shapes in read:
                _offer(_Ready(index, *send(flat, shapes, images.labels[index])), ready, stop)
                if stop.is_set():
                    return
    except BaseException as error:  # otherwise the consumer would wait forever
        last = error
    _offer(last, ready, stop)


def _offer(item: _Item, ready: queue.Queue[_Item], stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            ready.put(item, timeout=0.1)
            return


def _end(thread: threading.Thread, ready: queue.Queue[_Item], stop: threading.Event) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join()
    with contextlib.suppress(queue.Empty):
        while True:
            ready.get_nowait()


def _read(
    images: ImageSet, indices: Iterable[Tensor], workers: int, buffer: Callable[[int], Tensor]
) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
    """Indices, images one after the other in a buffer, and their shapes."""
    if isinstance(images, StoredImages):
        for index in indices:
            yield index, *read_flat(images, index, buffer)
        return
    tasks = (index.numpy() for index in indices)
    results = ordered_map(partial(_decode_batch, images), tasks, workers=workers)
    with contextlib.closing(results) as decoded:
        for places, pixels, sizes in decoded:
            flat = buffer(len(pixels))
            flat.copy_(pixels)
            yield torch.from_numpy(places), flat, torch.from_numpy(sizes)


def _decode_batch(images: ImageSet, index: np.ndarray) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """One tensor per batch: each tensor reaches the parent in a shared-memory file."""
    decoded = list(images.batch(torch.from_numpy(index)))
    shapes = np.array([image.shape[:2] for image in decoded], np.int64).reshape(-1, 2)
    return index, torch.cat([image.flatten() for image in decoded]), shapes


_Sent = tuple[Tensor, Tensor, Tensor, "torch.cuda.Event | None"]


def _to(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], _Sent]:
    return lambda flat, shapes, labels: (flat.to(device), shapes, labels.to(device), None)


def _to_cuda(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], _Sent]:
    """Copies on a separate stream; torch's pinned allocator keeps buffers until they have run."""
    stream = torch.cuda.Stream(device)

    def send(flat: Tensor, shapes: Tensor, labels: Tensor) -> _Sent:
        with torch.cuda.stream(stream):
            pixels = flat.to(device, non_blocking=True)
            classes = labels.pin_memory().to(device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(stream)
        return pixels, shapes, classes, copied

    return send


def _arrived(item: _Ready, device: torch.device) -> Batch:
    if item.copied is not None:
        current = torch.cuda.current_stream(device)
        current.wait_event(item.copied)
        # The copying stream owns the memory and must not reuse it before this stream is done.
        item.flat.record_stream(current)
        item.labels.record_stream(current)
    return Batch(item.indices, unpack(item.flat, item.shapes), item.labels)
