"""Damaged and hostile stores are refused in one sentence; nothing outside the folder is read."""

import json
import pickle

import numpy as np
import pytest
import torch

from amdim_fast.data.packed_store import read_store, verify_store
from amdim_fast.data.packing import pack
from tests.data.image_files import write_folder


@pytest.fixture
def store(tmp_path):
    write_folder(tmp_path / "source")
    pack(tmp_path / "source", tmp_path / "store", workers=0, progress=False)
    return tmp_path / "store"


def change_manifest(store, change):
    manifest = json.loads((store / "manifest.json").read_text())
    change(manifest)
    (store / "manifest.json").write_text(json.dumps(manifest))


def first_shard(manifest):
    return manifest["splits"]["train"]["shards"][0]


@pytest.mark.parametrize(
    "name",
    [
        "../secret/train-00000",
        "/etc/train-00000",
        "{outside}/train-00000",
        "train-00000/../../secret/train-00000",
        "train-00000\0",
        "train-00000\n",
        "..",
        "",
        "test-00000",
        "train-" + 5 * "\N{ARABIC-INDIC DIGIT ZERO}",
        None,
        7,
        ["train-00000"],
    ],
)
def test_names_cannot_leave_the_folder(store, tmp_path, name):
    outside = tmp_path / "secret"
    outside.mkdir()
    for path in store.iterdir():
        (outside / path.name).write_bytes(path.read_bytes())
    if isinstance(name, str):
        name = name.replace("{outside}", str(outside))
    change_manifest(store, lambda manifest: first_shard(manifest).update(name=name))
    with pytest.raises(ValueError, match="is not the name of a shard of train") as raised:
        read_store(store)
    assert str(raised.value).startswith(f"{store / 'manifest.json'} cannot be used: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="zip"), "its format is 'zip'; it must be 'amdim_fast packed"),
        (lambda m: m.update(version=2), "its version is 2; it must be 1"),
        (lambda m: m.pop("classes"), "no 'classes'"),
        (lambda m: m.update(splits=[]), "cannot be used"),
        (lambda m: m["splits"].pop("train"), "no 'train'"),
        (lambda m: first_shard(m).update(images=-1), "images of train-00000 is -1"),
        (lambda m: first_shard(m).update(images=True), "images of train-00000 is True"),
        (lambda m: first_shard(m).update(images=10**30), r"train-00000\.index has 384 bytes"),
        (
            lambda m: first_shard(m).update(bytes=5),
            r"train-00000\.bin has 21600 bytes instead of 5",
        ),
        (lambda m: first_shard(m).pop("sha256"), "no 'sha256'"),
        (lambda m: m.update(classes=["cat"]), r"index has labels that belong to no class"),
    ],
)
def test_manifest_that_is_wrong(store, change, message):
    change_manifest(store, change)
    with pytest.raises(ValueError, match=message):
        read_store(store)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", pickle.dumps({"a": 1}), b"[" * 100_000]
)
def test_manifest_that_is_no_manifest(store, content):
    (store / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json cannot be used: "):
        read_store(store)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((-1, 20, 30, 0), "impossible sizes or offsets"),
        ((0, 0, 30, 0), "impossible sizes or offsets"),
        ((0, 20, -30, 0), "impossible sizes or offsets"),
        ((0, 2**40, 2**40, 0), "impossible sizes or offsets"),
        ((21600 - 1799, 20, 30, 0), "points outside train-00000"),
        ((2**63 - 1, 20, 30, 0), "points outside train-00000"),
        ((0, 2**20, 2**20, 0), "points outside train-00000"),
        ((0, 20, 30, 2), "labels that belong to no class"),
        ((0, 20, 30, -2), "labels that belong to no class"),
    ],
)
def test_index_that_points_elsewhere(store, row, message):
    table = np.fromfile(store / "train-00000.index", "<i8").reshape(-1, 4)
    table[3] = row
    table.tofile(store / "train-00000.index")
    with pytest.raises(ValueError, match=rf"train-00000\.index.* {message}"):
        read_store(store)


def test_missing_files(store):
    (store / "test-00000.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"test-00000\.bin is missing; the store is damaged"
    ):
        read_store(store)
    with pytest.raises(
        FileNotFoundError, match=r"source is not a packed store: it has no manifest"
    ):
        read_store(store.parent / "source")


@pytest.mark.parametrize("suffix", ["bin", "index", "json"])
def test_verify_finds_a_changed_byte(store, suffix):
    assert verify_store(store) == 20
    path = store / f"train-00000.{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 - len(content) // 2 % 32] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=rf"train-00000\.{suffix} (differs|points|has)"):
        verify_store(store)


def test_shard_that_shrinks_or_vanishes_while_read(store):
    images = read_store(store).splits["train"]
    images.batch(torch.tensor([0]))
    with open(store / "train-00000.bin", "r+b") as file:
        file.truncate(3000)
    images.batch(torch.tensor([0]))
    with pytest.raises(
        OSError, match=r"train-00000\.bin ends inside train/cat/001\.png; the store"
    ):
        images.batch(torch.tensor([0, 1]))
    late = pickle.loads(pickle.dumps(images))
    (store / "train-00000.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00000\.bin cannot be read \(No such file"):
        late.batch(torch.tensor([0]))


@pytest.mark.parametrize("index", [12, -13, 10**12])
def test_index_out_of_range(store, index):
    with pytest.raises(IndexError):
        read_store(store).splits["train"].batch(torch.tensor([index]))
