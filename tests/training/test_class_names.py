"""A run keeps the names of its classes: labels follow them, and others are refused."""

import json
import os
from dataclasses import replace

import pytest
import torch

from amdim_fast import CheckpointError, load_checkpoint, pretrain, save_checkpoint
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import LOADERS, ImageData
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.training.recipes import RECIPES
from tests.data.image_files import write_folder
from tests.training.test_resume import assert_same, stop_after
from tests.training.tiny import TINY, few_digits

RECIPE = replace(
    TINY, data="folder", policy="cifar", batch_size=8, steps=2, checkpoint_every=50, baselines=False
)
WITHOUT = {"runs_dir": ".", "name": "run", "workers": 0, "progress": False}


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "folder", RECIPE)
    write_folder(tmp_path / "images", train=6, test=2, sizes=((32, 32),))
    return tmp_path / "images"


def reversed_digits(_root=None, _download=False):
    """The same images, where another order of the classes gives other labels."""
    data = few_digits()
    train, test = (TensorImages(p.images, 9 - p.labels) for p in (data.train, data.test))
    return ImageData(train, train, test, tuple(reversed(data.classes)))


def test_names_are_kept_and_renamed_folders_refused(images, tmp_path, capsys):
    pretrain("folder", images, **WITHOUT)
    path = tmp_path / "run" / "checkpoint.pt"
    assert read_checkpoint(path)["class_names"] == ["cat", "dog"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["class_names"] == [
        "cat",
        "dog",
    ]
    assert load_checkpoint(path).evaluator.class_names == ("cat", "dog")
    pretrain(resume="run", progress=False)

    for split in ("train", "val"):
        (images / split / "cat").rename(images / split / "zebra")
    assert main(["pretrain", "--resume=run"]) == 2
    assert capsys.readouterr().err == (
        "amdim-fast: the classes of the data set are not those of the run: new 'zebra', missing"
        " 'cat'; call the class folders what they were, or give the same data set with --data-dir\n"
    )


def test_a_packed_store_keeps_them_too(images, tmp_path, capsys):
    assert main(["pack", "images", "store", "--workers=0"]) == 0
    pretrain("folder", tmp_path / "store", **WITHOUT)
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["class_names"] == ["cat", "dog"]
    for split in ("train", "val"):
        (images / split / "dog").rename(images / split / "ape")
    assert main(["pack", "images", "renamed", "--workers=0"]) == 0
    capsys.readouterr()
    assert main(["pretrain", "--resume=run", "--data-dir=renamed"]) == 2
    assert "not those of the run: new 'ape', missing 'dog'; call" in capsys.readouterr().err


def test_labels_follow_names_on_resume(tmp_path, monkeypatch):
    """A resumed run whose data set lists its classes in another order ends in the same bits."""
    recipe = replace(TINY, steps=6, baselines=False)
    monkeypatch.setitem(LOADERS, "digits", few_digits)
    pretrain(recipe, **WITHOUT | {"runs_dir": tmp_path, "name": "whole"})
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        pretrain(recipe, **WITHOUT | {"runs_dir": tmp_path})
    monkeypatch.setitem(LOADERS, "digits", reversed_digits)
    pretrain(resume=tmp_path / "run", progress=False)
    found, expected = (
        read_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("run", "whole")
    )
    assert_same(found, expected)
    assert found["class_names"] == list("0123456789")


def test_checkpoints_without_names_go_on(images, tmp_path):
    """Those of before; what the data set says now is kept from then on."""
    pretrain("folder", images, **WITHOUT)
    path = tmp_path / "run" / "checkpoint.pt"
    contents = read_checkpoint(path)
    del contents["class_names"]
    torch.save(contents | {"step": 1}, path)
    assert load_checkpoint(path).evaluator.class_names is None
    pretrain(resume=tmp_path / "run", progress=False)
    assert read_checkpoint(path)["class_names"] == ["cat", "dog"]


def test_names_in_a_file(images, tmp_path):
    """Any name a folder can have is read back; what are no names is refused."""
    odd = [os.fsdecode(b"caf\xe9"), "\u732b \x1b\n"]
    pretrain("folder", images, **WITHOUT)
    path = tmp_path / "run" / "checkpoint.pt"
    model = load_checkpoint(path)
    model.evaluator.class_names = tuple(odd)
    save_checkpoint(path, model)
    assert load_checkpoint(path).evaluator.class_names == tuple(odd)
    contents = read_checkpoint(path)
    for names, said in (
        (3, "has class_names that are not a list of different names"),
        (["cat", 3], "has class_names that are not a list of different names"),
        (["cat", "cat"], "has class_names that are not a list of different names"),
        (["cat"], "names 1 classes for probes of 2"),
    ):
        torch.save(contents | {"class_names": names}, path)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        assert str(caught.value) == f"{path} {said}"
    with pytest.raises(CheckpointError, match="extra 'class_names' has a reserved name"):
        save_checkpoint(path, model, class_names=odd)
