"""Tar shards and saved data sets are taken wherever image folders are, with the same results."""

import hashlib
import importlib.util
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from amdim_fast import load_data
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import describe_data
from amdim_fast.data.loader import training_batches
from amdim_fast.data.packed_store import read_store
from amdim_fast.data.packing import pack
from tests.data.archives import data_set, images_of, write_saved, write_shards, write_tar
from tests.data.image_files import write_folder

# An extra that users may lack; `make test` installs it.
HAS_DATASETS = importlib.util.find_spec("datasets") is not None
NEEDS_DATASETS = pytest.mark.skipif(not HAS_DATASETS, reason="datasets is not installed")
KINDS = ["tar", pytest.param("saved", marks=NEEDS_DATASETS)]
SMALL = ["--ndf=4", "--n-rkhs=16", "--depth=1", "--batch-size=4", "--workers=0"]
QUIET = ["--workers=0", "--no-progress"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same images as files, in tar shards and as a data set of Hugging Face."""
    root = tmp_path_factory.mktemp("sources")
    write_folder(root / "files", train=6, test=2, sizes=((40, 50), (48, 44)))
    write_shards(root / "files", root / "tar", shard=5)
    if HAS_DATASETS:
        write_saved(importlib.import_module("datasets"), root / "files", root / "saved")
    return root


def names_in(kind, split):
    """What the images of the files are called, in their order."""
    if kind == "saved":
        return [f"{'validation' if split == 'val' else split}/{i}" for i in range(20)]
    count = 6 if split == "train" else 2
    keys = [f"{label}{i:03d}.png" for label in ("cat", "dog") for i in range(count)]
    return [f"{split}-{i // 5:05d}.tar/{key}" for i, key in enumerate(keys)]


@pytest.mark.parametrize("kind", KINDS)
def test_workers_read_and_pack_the_same(sources, tmp_path, kind):
    images, files = load_data("folder", sources / kind), load_data("folder", sources / "files")
    assert images.classes == files.classes == ("cat", "dog")
    assert images.train.names() == names_in(kind, "train")[:12]
    assert images.test.names() == names_in(kind, "val")[:4]
    with (
        training_batches(images.train, 5, seed=3, workers=1) as found,
        training_batches(files.train, 5, seed=3, workers=0) as expected,
    ):
        for _ in range(3):
            batch, truth = next(found), next(expected)
            assert batch.indices.tolist() == truth.indices.tolist()
            assert batch.labels.tolist() == truth.labels.tolist()
            for image, other in zip(batch.images, truth.images, strict=True):
                np.testing.assert_array_equal(image.numpy(), other.numpy())
    pack(sources / kind, tmp_path / "store", size=42, workers=1, progress=False)
    pack(sources / "files", tmp_path / "other", size=42, workers=0, progress=False)
    for split in ("train", "test"):
        for end in ("bin", "index"):
            name = f"{split}-00000.{end}"
            packed = (tmp_path / "store" / name).read_bytes()
            assert packed == (tmp_path / "other" / name).read_bytes()
    store = read_store(tmp_path / "store")
    assert store.classes == ("cat", "dog")
    assert store.splits["train"].names() == names_in(kind, "train")[:12]


@pytest.mark.parametrize("kind", KINDS)
def test_commands(sources, tmp_path, monkeypatch, capsys, kind):
    """Trained, resumed, evaluated and embedded."""
    monkeypatch.chdir(tmp_path)
    data = f"--data-dir={sources / kind}"
    flags = ["--recipe=folder", data, "--policy=cifar", "--name=run", "--runs-dir=.", *SMALL]
    assert main(["pretrain", *flags, "--steps=2"]) == 0
    assert "data: 12 training images of 2 classes; 4 test images" in capsys.readouterr().err
    assert main(["pretrain", "--resume=run", "--steps=3", *QUIET]) == 0
    model = "run/checkpoint.pt"
    judged = ["evaluate", model, "--data=folder", "--methods", "knn", "stored", "--knn-k=3"]
    features = {}
    for folder in (kind, "files"):
        place = sources / folder
        assert main([*judged, *QUIET, f"--data-dir={place}", f"--out={folder}"]) == 0
        assert main(["embed", model, str(place), f"{folder}.npz", *QUIET]) == 0
        with np.load(f"{folder}.npz") as found:
            features[folder] = dict(found)
    found, expected = features[kind], features["files"]
    for key in ("features", "labels", "splits", "classes"):
        np.testing.assert_array_equal(found[key], expected[key])
    assert found["names"].tolist() == names_in(kind, "train")[:12] + names_in(kind, "val")[:4]
    results = [json.loads((tmp_path / f / "evaluation.json").read_text()) for f in (kind, "files")]
    assert results[0]["accuracy"] == results[1]["accuracy"]


@pytest.fixture(params=KINDS)
def bad(request, tmp_path):
    """A source with a damaged image: its path, the image's place in messages and its name."""
    write_folder(tmp_path / "files", train=4, test=0, sizes=((32, 32),))
    found = images_of(tmp_path / "files", "train")
    name, content, label = found[5]
    found[5] = name, content[:60], label
    path = tmp_path / request.param
    if request.param == "tar":
        members = {}
        for number, (_, content, label) in enumerate(found):
            members[f"{number}.png"] = content
            members[f"{number}.cls"] = b"1" if label == "dog" else b"0"
        write_tar(path / "a.tar", members)
        return path, f"{path}/a.tar: 5.png", "a.tar/5.png"
    data_set(importlib.import_module("datasets"), found, ["cat", "dog"]).save_to_disk(path)
    return path, f"{path}: row 5 of train", "train/5"


def test_a_bad_image(bad, tmp_path, monkeypatch, capsys):
    """It stops the run, which goes on without it; packing leaves it out too."""
    path, place, name = bad
    monkeypatch.chdir(tmp_path)
    flags = ["--recipe=folder", f"--data-dir={path}", "--policy=cifar", "--name=run", *SMALL]
    capsys.readouterr()
    assert main(["pretrain", *flags, "--runs-dir=.", "--steps=3"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"amdim-fast: {place} is damaged or truncated (")
    assert said.endswith("--skip-bad")
    assert main(["pretrain", "--resume=run", "--skip-bad", "--workers=0"]) == 0
    assert "with 7 training images; before, there were 8" in capsys.readouterr().err
    listed = json.loads((tmp_path / "run" / "left_out.json").read_text())
    assert list(listed["train"]) == [name]
    assert main(["pack", str(path), "store", *QUIET]) == 2
    assert f"{place} is damaged or truncated (" in capsys.readouterr().err
    assert main(["pack", str(path), "other", "--skip-bad", *QUIET]) == 0
    store = read_store(tmp_path / "other")
    assert len(store.splits["train"]) == 7
    assert store.skipped[0].startswith(f"{place} is damaged")


def test_bounds_of_size(bad):
    """Limits of pixels and of sides hold, and name the image."""
    path, place, _ = bad
    for options, said in (
        ({"max_pixels": 1000}, "has 1,024 pixels, more than 1,000; allow them with --max-pixels"),
        ({"least_side": 33}, "is 32 x 32 pixels, but the policy moves images by up to 32 pixels"),
    ):
        data = load_data("folder", path, **options)
        first = "0".join(place.rsplit("5", 1))
        with pytest.raises(ValueError, match=f"^{re.escape(first)} {said}"):
            data.train.batch(data.train.labels[:1])


def test_images_that_ask_to_be_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "JPEG", exif=exif)
    write_tar(tmp_path / "a.tar", {"0.jpg": encoded.getvalue()})
    assert describe_data(load_data("folder", tmp_path)) == (
        "data: 1 training images without labels; no test images; of 1 files looked at, 1 have an"
        " EXIF orientation, which is ignored: turn their pixels first, with Pillow's"
        " ImageOps.exif_transpose, if they shall be upright"
    )


def test_packing_beside_and_after_a_change(tmp_path):
    """The store may lie beside a tar file; an unfinished one knows what it was begun from."""
    write_folder(tmp_path / "files", train=1, test=0)
    found = images_of(tmp_path / "files", "train")
    members = {f"{i}.png": content for i, (_, content, _) in enumerate(found)}
    write_tar(tmp_path / "a.tar", members)
    pack(tmp_path / "a.tar", tmp_path / "store", workers=0, progress=False)
    assert len(read_store(tmp_path / "store").splits["train"]) == 2
    before = hashlib.sha256((tmp_path / "store" / "plan.json").read_bytes()).digest()
    (tmp_path / "store" / "manifest.json").unlink()
    write_tar(tmp_path / "a.tar", dict(zip(members, reversed(members.values()), strict=True)))
    with pytest.raises(ValueError, match="was begun from other files than"):
        pack(tmp_path / "a.tar", tmp_path / "store", workers=0, progress=False)
    assert hashlib.sha256((tmp_path / "store" / "plan.json").read_bytes()).digest() == before
