"""Packing: right pixels, the same bytes after any interruption, nothing overwritten."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from amdim_fast.cli.main import main
from amdim_fast.data import packing
from amdim_fast.data.claims import claimed
from amdim_fast.data.datasets import load_data
from amdim_fast.data.packed_store import read_store, verify_store
from amdim_fast.data.packing import pack
from tests.data.image_files import assert_group_ends, picture, write_folder
from tests.processes import run, start


def packed(*arguments, **options):
    return pack(*arguments, **{"workers": 0, "progress": False, **options})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path):
    write_folder(tmp_path / "source", train=7, sizes=((20, 30), (33, 9)))
    return tmp_path / "source"


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(packing, "LEAST_SHARD_IMAGES", 3)


def test_pixels_labels_and_names(source, tmp_path, small_shards):
    result = packed(source, tmp_path / "store")
    assert (result.images, result.skipped) == (22, ())
    files, store = load_data("folder", source), load_data("folder", tmp_path / "store")
    assert store.classes == files.classes == ("cat", "dog")
    assert store.train_labeled is store.train
    for ours, truth in ((store.train, files.train), (store.test, files.test)):
        assert torch.equal(ours.labels, truth.labels)
        order = torch.randperm(len(truth))
        assert len(ours) == len(truth)
        for found, wanted in zip(ours.batch(order), truth.batch(order), strict=True):
            assert torch.equal(found, wanted)
    assert store.train.name(8) == "train/dog/001.png"
    assert store.test.name(0) == "val/cat/000.png"
    assert len(read_store(tmp_path / "store").manifest["splits"]["train"]["shards"]) == 5
    assert verify_store(tmp_path / "store") == 22


def test_one_size_is_a_tensor_with_memory_of_its_own(tmp_path):
    pixels = write_folder(tmp_path / "source", test=0)
    packed(tmp_path / "source", tmp_path / "store")
    images = load_data("folder", tmp_path / "store").train
    index = torch.tensor([11, 0, 11])
    batch = images.batch(index)
    assert batch.shape == (3, 20, 30, 3)
    np.testing.assert_array_equal(batch[2], pixels["train/dog/005.png"])
    batch[0] = 0
    np.testing.assert_array_equal(images.batch(index)[0], pixels["train/dog/005.png"])
    out = torch.full((3 * 1800,), 7, dtype=torch.uint8)
    images.read_into(index, out)
    assert torch.equal(out.view(3, 20, 30, 3), images.batch(index))
    assert images.batch(torch.empty(0, dtype=torch.int64)) == []


@pytest.mark.parametrize(
    ("size", "height", "width", "expected"),
    [
        (10, 20, 33, (10, 16)),
        (10, 47, 20, (23, 10)),
        (20, 20, 33, (20, 33)),
        (50, 20, 33, (20, 33)),
        (1, 20, 33, (1, 1)),
    ],
)
def test_resize_is_torchvisions_and_never_enlarges(tmp_path, size, height, width, expected):
    (tmp_path / "source").mkdir()
    image = Image.fromarray(picture(0, height, width))
    image.save(tmp_path / "source" / "a.png")
    packed(tmp_path / "source", tmp_path / "store", size=size)
    found = load_data("folder", tmp_path / "store").train.batch(torch.tensor([0]))[0]
    assert found.shape == (*expected, 3)
    if size < min(height, width):
        resize = transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
        image = resize(image)
    np.testing.assert_array_equal(found, np.asarray(image))


def test_bytes_do_not_depend_on_workers(source, tmp_path, small_shards):
    packed(source, tmp_path / "one", size=12)
    packed(source, tmp_path / "two", size=12, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_every_interruption_resumes_to_the_same_bytes(source, tmp_path, small_shards, monkeypatch):
    packed(source, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    replace, allowed = os.replace, 0

    class Killed(BaseException):
        pass

    def dying_replace(*arguments):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        replace(*arguments)

    monkeypatch.setattr(os, "replace", dying_replace)
    for allowed in range(len(expected)):
        left, folder = allowed, tmp_path / f"cut{allowed}"
        with pytest.raises(Killed):
            packed(source, folder)
        (folder / ".train-00000.bin.0123abcd.tmp").write_bytes(b"left by kill -9")
        assert "manifest.json" not in contents(folder)
        if (folder / "plan.json").exists():
            with pytest.raises(FileNotFoundError, match="is an unfinished store; run the same"):
                load_data("folder", folder)
        left = -1
        packed(source, folder)
        assert contents(folder) == expected


def pack_words(*arguments):
    return ["-m", "amdim_fast", "pack", *map(str, arguments)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Enough pictures for a few seconds and several shards, and the uninterrupted store."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "source").mkdir()
    for number in range(1200):
        name = folder / "source" / f"{number:04d}.jpg"
        if number < 40:
            Image.fromarray(picture(number, 300, 400)).save(name)
        else:
            name.write_bytes((folder / "source" / f"{number % 40:04d}.jpg").read_bytes())
    packed(folder / "source", folder / "whole", size=64)
    return folder


def test_kill_9_and_the_same_command_again(many, tmp_path):
    """The main process is killed; its workers must not live on."""
    words = pack_words(many / "source", tmp_path / "store", "--size", 64, "--workers", 2)
    for shards in (0, 1, 3):
        with start(words, tmp_path, session=True) as process:
            waited_for = ("plan.json", *(f"train-{k:05d}.bin" for k in range(shards)))
            while not all((tmp_path / "store" / name).exists() for name in waited_for):
                assert process.poll() is None
                time.sleep(0.002)
            process.kill()
        assert_group_ends(process.pid)
        assert not (tmp_path / "store" / "manifest.json").exists()
    assert run(words, tmp_path).returncode == 0
    assert contents(tmp_path / "store") == contents(many / "whole")


def test_killed_worker_is_one_sentence(many, tmp_path):
    words = pack_words(many / "source", tmp_path / "store", "--workers", 2)
    process = start(words, tmp_path, session=True)
    worker = None
    while worker is None and process.poll() is None:
        # A worker holds the temporary file of its shard open.
        for entry in os.listdir("/proc"):
            try:
                links = [
                    os.readlink(f"/proc/{entry}/fd/{n}") for n in os.listdir(f"/proc/{entry}/fd")
                ]
            except OSError:
                continue
            if entry.isdigit() and any(
                str(tmp_path / "store") in x and ".bin." in x for x in links
            ):
                worker = int(entry)
    assert worker not in (None, process.pid)
    os.kill(worker, signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error.splitlines()[-1].startswith("amdim-fast: a worker process died")
    assert_group_ends(process.pid)


def test_command_end_to_end(source, tmp_path):
    (source / "train" / "dog" / "003.png").write_bytes(b"")
    words = pack_words(source, tmp_path / "store", "--workers", 1, "--size", 16)
    done = run(words, tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"amdim-fast: {source}/train/dog/003.png is empty; --skip-bad leaves such files out"
    )
    done = run([*words, "--skip-bad"], tmp_path)
    assert done.returncode == 0, done.stderr
    words = pack_words(source, tmp_path / "other", "--workers", 0, "--size", 16, "--skip-bad")
    done = run([*words, "--verify"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"packed 21 images into {tmp_path / 'other'}",
        f"skipped 1 bad images, see {tmp_path / 'other' / 'skipped.txt'}",
        f"verified 21 images in {tmp_path / 'other'}",
    ]
    assert contents(tmp_path / "store") == contents(tmp_path / "other")
    assert "image/s" in done.stderr
    listed = (tmp_path / "other" / "skipped.txt").read_text()
    assert listed == f"{source}/train/dog/003.png is empty\n"
    assert len(load_data("folder", tmp_path / "other").train) == 13


def test_nothing_but_bad_images(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"every image of .*source is bad; see .*skipped\.txt"):
        packed(tmp_path / "source", tmp_path / "store", skip_bad=True)
    assert "manifest.json" not in contents(tmp_path / "store")


def test_finished_store_is_never_overwritten(source, tmp_path, capsys):
    packed(source, tmp_path / "store")
    before = contents(tmp_path / "store")
    flags = [str(source), str(tmp_path / "store"), "--size=3"]
    assert main(["pack", *flags]) == 2
    assert "is a finished store; remove it or pack to another folder" in capsys.readouterr().err
    assert contents(tmp_path / "store") == before
    assert main(["pack", *flags, "--verify"]) == 0
    assert capsys.readouterr().out == f"verified 22 images in {tmp_path / 'store'}\n"
    assert contents(tmp_path / "store") == before


def test_unfinished_store_keeps_its_plan(source, tmp_path):
    packed(source, tmp_path / "store", size=8)
    (tmp_path / "store" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="was begun with size = 8, not 9; use the same options"):
        packed(source, tmp_path / "store", size=9)
    image = source / "train" / "cat" / "000.png"
    Image.fromarray(picture(99)).save(image)
    with pytest.raises(ValueError, match=r"was begun from other files than .*source holds now"):
        packed(source, tmp_path / "store", size=8)
    for content in ("{", "[" * 100_000):
        (tmp_path / "store" / "plan.json").write_text(content)
        with pytest.raises(ValueError, match=r"plan\.json is damaged; remove"):
            packed(source, tmp_path / "store", size=8)


def test_other_folders_are_left_alone(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("kept")
    with pytest.raises(FileExistsError, match="mine is not empty and not an unfinished store"):
        packed(source, tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"thesis": b"kept"}
    with pytest.raises(ValueError, match=r"store is inside its source .*source;"):
        packed(source, source / "store")
    with pytest.raises(OSError, match="thesis/store cannot be written to"):
        packed(source, tmp_path / "mine" / "thesis" / "store")


def test_two_packers_do_not_meet(source, tmp_path):
    with claimed(tmp_path / "store"), pytest.raises(BlockingIOError, match="is being"):
        packed(source, tmp_path / "store")
    assert packed(source, tmp_path / "store").images == 22


def test_full_disk_is_one_sentence_and_resumes(source, tmp_path, small_shards, monkeypatch):
    packed(source, tmp_path / "whole")
    fsync, left = os.fsync, 5

    def full(descriptor):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space left for .*store; make room and run the same"):
        packed(source, tmp_path / "store")
    assert not [name for name in contents(tmp_path / "store") if name.endswith(".tmp")]
    packed(source, tmp_path / "store")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0; it must be 1 or more"),
        ({"workers": -1}, "workers is -1; it must be a whole number from 0 to 1024"),
        ({"workers": 99_999}, "workers is 99999; it must be a whole number from 0 to 1024"),
        ({"workers": 1.5}, "workers is 1.5; it must be a whole number"),
    ],
)
def test_bad_options(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        packed(source, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_manifest_says_what_was_done(source, tmp_path):
    packed(source, tmp_path / "store", size=8)
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["version"] == 1
    assert manifest["source"] == str(source)
    assert manifest["options"]["size"] == 8
    assert manifest["classes"] == ["cat", "dog"]
    assert manifest["splits"]["test"]["images"] == 8
