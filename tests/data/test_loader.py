"""Batches: a pure function of seed and step; errors arrive; nothing is left behind."""

import os
import resource
import signal
import threading
import time
from itertools import islice

import pytest
import torch

from amdim_fast.data.buffers import Buffers
from amdim_fast.data.datasets import load_data
from amdim_fast.data.image_sets import FileImages, TensorImages
from amdim_fast.data.loader import Loader, ordered_batches, training_batches, training_indices
from amdim_fast.data.packing import pack
from tests.data.image_files import write_folder
from tests.data.leftovers import assert_nothing_is_left

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def numbered(count=40):
    """Image i is filled with i, its label is 2 i."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 5, 3)
    return TensorImages(images, 2 * torch.arange(count))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One set in three forms, sizes differing."""
    folder = tmp_path_factory.mktemp("sources")
    write_folder(folder / "files", train=12, test=0, sizes=((20, 30), (9, 14), (20, 30)))
    pack(folder / "files", folder / "store", workers=0, progress=False)
    return {
        "files": load_data("folder", folder / "files").train,
        "packed": load_data("folder", folder / "store").train,
    }


def take(iterator, count):
    return list(islice(iterator, count))


def test_every_image_once_an_epoch_and_the_rest_dropped():
    batches = take(training_indices(10, 3, seed=0), 6)
    assert all(batch.shape == (3,) and batch.dtype == torch.int64 for batch in batches)
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert len(first.unique()) == len(second.unique()) == 9
    assert 0 <= int(first.min()) <= int(first.max()) <= 9
    assert not torch.equal(first, second)


def test_seed_and_epoch_do_not_mix():
    """seed + epoch would make epoch 1 of seed 0 equal epoch 0 of seed 1."""
    epochs = [
        tuple(batch.tolist())
        for seed in range(4)
        for batch in take(training_indices(30, 30, seed=seed), 4)
    ]
    assert len(set(epochs)) == 16


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 7, 3 * 10**9])
def test_start_at_any_step(start):
    whole = take(training_indices(10, 3, seed=5), 12)
    if start < 10:
        assert torch.equal(
            torch.stack(take(training_indices(10, 3, seed=5, start=start), 5)),
            torch.stack(whole[start : start + 5]),
        )
    else:
        assert len(next(training_indices(10, 3, seed=5, start=start))) == 3


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_share_the_same_batch(world_size):
    options = {"seed": 3, "start": 1, "world_size": world_size}
    ranks = [take(training_indices(20, 6, rank=r, **options), 5) for r in range(world_size)]
    joined = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
    assert torch.equal(
        torch.stack(joined), torch.stack(take(training_indices(20, 6, seed=3, start=1), 5))
    )


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((10, 11), {}, "batch_size is 11; it must be from 1 to 10, the number of images"),
        ((10, 0), {}, "batch_size is 0"),
        ((10, 4), {"rank": 2, "world_size": 2}, "rank is 2; it must be from 0 to 1"),
        ((10, 4), {"world_size": 3}, "batch_size is 4; it must be a multiple of the 3 processes"),
        ((10, 4), {"seed": -1}, "seed is -1; it must be 0 or more"),
        ((10, 4), {"start": -1}, "start is -1; it must be 0 or more"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        training_indices(*arguments, **{"seed": 0, **options})
    with pytest.raises(ValueError, match="prefetch is 0"):
        training_batches(numbered(), 4, seed=0, prefetch=0)
    with pytest.raises(ValueError, match="workers is -1"):
        training_batches(numbered(), 4, seed=0, workers=-1)


def test_batches_are_what_their_indices_say():
    with training_batches(numbered(), 7, seed=1) as loader:
        for batch in take(loader, 12):
            assert torch.equal(batch.images[:, 3, 4, 2].long(), batch.indices)
            assert torch.equal(batch.labels, 2 * batch.indices)
            assert batch.images.shape == (7, 4, 5, 3)
        assert loader.waited > 0


def test_kept_batches_stay_as_they_were():
    with training_batches(numbered(), 4, seed=1, prefetch=1) as loader:
        kept = take(loader, 25)
    assert all(torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices) for batch in kept)


def test_memory_is_used_again_only_when_nothing_holds_it():
    buffers = Buffers()
    first = buffers(100).fill_(1)
    place, part = first.data_ptr(), first.view(10, 10)[3]
    del first
    second = buffers(100).fill_(2)
    assert second.data_ptr() != place
    assert (part == 1).all()
    shared = part.numpy()
    del part
    assert buffers(100).data_ptr() != place
    assert (shared == 1).all()
    del shared, second
    again = [buffers(size) for size in (100, 100, 0, 1000)]
    assert place in [tensor.data_ptr() for tensor in again]
    assert [len(tensor) for tensor in again] == [100, 100, 0, 1000]


def test_a_loader_uses_its_memory_again():
    with training_batches(numbered(), 8, seed=1, prefetch=1) as loader:
        places = {next(loader).images.data_ptr() for _ in range(60)}
    assert len(places) <= 6  # in the queue, at either end of it, and spare


def test_in_order_with_the_rest():
    with ordered_batches(numbered(10), 4) as loader:
        indices = [batch.indices.tolist() for batch in loader]
        assert next(loader, None) is None
    assert indices == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("files", {"workers": 0, "prefetch": 1}),
        ("files", {"workers": 1, "prefetch": 3}),
        ("files", {"workers": 2, "prefetch": 2}),
        ("packed", {"prefetch": 1}),
        ("packed", {"prefetch": 5}),
    ],
)
def test_same_batches_however_they_are_read(sources, source, options):
    truth = sources["files"]
    state = torch.random.get_rng_state()
    with training_batches(sources[source], 5, seed=2, start=3, **options) as loader:
        for batch, index in zip(
            loader, take(training_indices(24, 5, seed=2, start=3), 9), strict=False
        ):
            assert torch.equal(batch.indices, index)
            assert torch.equal(batch.labels, truth.labels[index])
            for found, wanted in zip(batch.images, truth.batch(index), strict=True):
                assert torch.equal(found, wanted)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_closing_early(sources, workers):
    before = set(threading.enumerate())
    loader = training_batches(sources["files"], 5, seed=0, workers=workers, prefetch=4)
    next(loader)
    loader.close()
    assert_nothing_is_left(before, seconds=1)
    assert next(loader, None) is None
    loader.close()
    dropped = training_batches(sources["files"], 5, seed=0, workers=workers)
    next(dropped)
    del dropped
    assert_nothing_is_left(before, seconds=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_vanished_file_is_named(tmp_path, workers):
    write_folder(tmp_path, train=40, test=0)
    images = load_data("folder", tmp_path).train
    with training_batches(images, 4, seed=0, workers=workers) as loader:
        next(loader)
        for path in (tmp_path / "train").rglob("*.png"):
            path.unlink()
        with pytest.raises(FileNotFoundError, match=r"/train/.*\.png cannot be read \(No such"):
            take(loader, 40)
        assert next(loader, None) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_file_is_named(tmp_path, workers):
    write_folder(tmp_path, test=0)
    (tmp_path / "train" / "cat" / "003.png").write_bytes(b"x")
    images = load_data("folder", tmp_path).train
    with (
        ordered_batches(images, 2, workers=workers) as loader,
        pytest.raises(ValueError, match=r"cat/003\.png is not an image \(BMP, GIF"),
    ):
        take(loader, 6)


class Failing(TensorImages):
    def read_into(self, index, out):
        if 20 in index:
            raise RuntimeError("planted")
        super().read_into(index, out)


def test_error_in_the_thread_arrives_once_and_in_its_place():
    images = Failing(numbered().images)
    with ordered_batches(images, 8) as loader:
        assert [next(loader).indices[0] for _ in range(2)] == [0, 8]
        with pytest.raises(RuntimeError, match=r"^planted$"):
            next(loader)
        assert next(loader, None) is None


class Dying(FileImages):
    """Kills the process that decodes image 9, as the system does when memory runs out."""

    def batch(self, index):
        if 9 in index:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(index)


def test_killed_worker(sources):
    files = sources["files"]
    images = Dying(files.root, [files.name(i) for i in range(12)])
    with (
        ordered_batches(images, 3, workers=2) as loader,
        pytest.raises(ChildProcessError, match=r"a worker process died; .* use fewer workers"),
    ):
        take(loader, 4)


class Undelivered(FileImages):
    """Batches of 3 MB where shared memory takes no more than 1 MB."""

    def batch(self, index):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        return torch.zeros(len(index), 1024, 1024, 3, dtype=torch.uint8)


def test_a_batch_that_cannot_be_handed_over_ends_the_loader(sources):
    """As where /dev/shm is small; the queue would drop the batch, and the loader wait for ever."""
    size = os.statvfs("/dev/shm")
    with (
        ordered_batches(Undelivered("/", ["a"] * 4), 1, workers=2) as loader,
        pytest.raises(OSError, match="/dev/shm cannot take") as caught,
    ):
        next(loader)
    assert str(caught.value) == (
        "/dev/shm cannot take a batch from a worker (File too large (27)): it has"
        f" {size.f_blocks * size.f_frsize / 2**20:,.0f} MB, and a batch takes 3 MB, of which up to"
        " 4 are there at once; enlarge it (docker run --shm-size=1g), or decode without worker"
        " processes (--workers 0)"
    )


def test_waiting_is_counted():
    def slow():
        for index in torch.arange(12).split(4):
            time.sleep(0.1)
            yield index

    with Loader(numbered(), slow()) as loader:
        next(loader)
        first = loader.waited
        time.sleep(0.5)
        take(loader, 2)
        assert first >= 0.09
        assert loader.waited - first < 0.1


@pytest.mark.gpu
def test_pinned_memory_is_used_again():
    made = []
    with training_batches(numbered(), 8, seed=1, device="cuda") as loader:
        for step, batch in enumerate(islice(loader, 60)):
            assert torch.equal(batch.images[:, 0, 0, 0].cpu().long(), batch.indices)
            if step >= 20:
                made.append(torch.cuda.host_memory_stats()["num_host_alloc"])
    assert made[0] == made[-1]


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["files", "packed", "memory"])
def test_cuda_batches_are_the_cpus(sources, source):
    images = numbered() if source == "memory" else sources[source]
    stream = torch.cuda.Stream()
    options = {"seed": 4, "workers": 1}
    with (
        training_batches(images, 6, device="cuda", prefetch=3, **options) as loader,
        training_batches(images, 6, **options) as truth,
        torch.cuda.stream(stream),
    ):
        for batch, expected in islice(zip(loader, truth, strict=True), 40):
            # Work queued before the copy is read keeps the stream busy while memory is reused.
            torch.cuda._sleep(200_000)
            for found, wanted in zip(batch.images, expected.images, strict=True):
                assert found.is_cuda
                assert torch.equal(found.cpu(), wanted)
            assert torch.equal(batch.labels.cpu(), expected.labels)
            assert not batch.indices.is_cuda
