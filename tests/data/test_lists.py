"""Images that a text file lists: labels, splits, pixels, and what is wrong with a line."""

import os
import sys

import numpy as np
import pytest
import torch

from amdim_fast import AMDIM, load_data, save_checkpoint
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import describe_data
from amdim_fast.data.lists import read_list
from tests.data.image_files import write_folder

TABLE = "label,path,Split\ndog,{0},\n cat ,{1},Train\ndog,{2},test\ncat,{3},TEST\n"


@pytest.fixture
def pictures(tmp_path):
    """Four files, and their pixels."""
    return write_folder(tmp_path, train=2, test=0)


def written(tmp_path, name, text, pictures):
    path = tmp_path / name
    path.write_text(text.format(*pictures), encoding="utf-8")
    return path


def assert_images(images, pixels, labels):
    found = images.batch(torch.arange(len(images)))
    np.testing.assert_array_equal(found.numpy(), np.stack(pixels))
    assert images.labels.tolist() == labels


def test_a_table(tmp_path, pictures):
    pixels = list(pictures.values())
    for name, text in (
        ("list.csv", TABLE),
        ("list.tsv", TABLE.replace(",", "\t")),
        ("LIST.CSV", "\ufeff" + TABLE.replace("\n", "\r\n") + "\r\n"),
        ("quoted.csv", TABLE.replace("{0}", '"{0}"')),
        ("metadata.csv", TABLE.replace("path", "file_name")),
        ("spaces.csv", TABLE.replace(",", " , ")),
        ("quoted spaces.csv", TABLE.replace(",", ", ").replace("{0}", '"{0} "')),
        ("more.csv", TABLE.replace("\n", ",x,\n").replace("Split,x,", "Split,Caption,")),
    ):
        data = load_data("folder", written(tmp_path, name, text, pictures))
        assert data.classes == ("cat", "dog")
        assert_images(data.train, pixels[:2], [1, 0])
        assert_images(data.train_labeled, pixels[:2], [1, 0])
        assert_images(data.test, pixels[2:], [1, 0])
        assert data.train.names() == list(pictures)[:2]
    assert describe_data(data) == "data: 2 training images of 2 classes; 2 test images"


def test_a_plain_list(tmp_path, pictures):
    """Labels behind a tab; names with spaces and commas, absolute or relative to the list."""
    odd = tmp_path / "a, b.png"
    (tmp_path / next(iter(pictures))).rename(odd)
    lines = [f"{odd}\t10", "", *(f"{name}\t9" for name in list(pictures)[1:])]
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "images.txt"
    path.write_text("\n".join(lines).replace("train/", "../train/"))
    data = load_data("folder", path)
    assert data.classes == ("9", "10")
    assert_images(data.train, list(pictures.values()), [1, 0, 0, 0])
    assert data.test is None


def test_paths_of_the_home_folder_and_spaces_around_paths(tmp_path, pictures, monkeypatch):
    """Unless there are files of these names."""
    monkeypatch.setenv("HOME", str(tmp_path / "train"))
    first, second, third, _ = pictures
    (tmp_path / third).rename(tmp_path / " odd .png ")
    lines = [f"~/{first.removeprefix('train/')}", f"  {second} \t ", " odd .png ", " "]
    (tmp_path / "list.txt").write_text("\r\n".join(lines))
    pixels = list(pictures.values())
    assert_images(load_data("folder", tmp_path / "list.txt").train, pixels[:3], [-1] * 3)


def test_utf_16_is_named(tmp_path, pictures):
    path = tmp_path / "list.txt"
    for encoding in ("utf-16-le", "utf-16-be"):
        path.write_bytes(("\ufeff" + next(iter(pictures))).encode(encoding))
        with pytest.raises(ValueError, match=r"list.txt is UTF-16 text; save it as UTF-8"):
            read_list(path)


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ("path\n{2}\n{0}\n", ()),
        ("path,label\n{2},\n{0},\n", ()),
        ("path,label\n{2},x\n{0},x\n", ("labels of a single class (x)",)),
        ("path,split\n{2},train\n{0},\n{1},test\n", ("test images as nothing is labeled",)),
    ],
)
def test_without_labels(tmp_path, pictures, text, ignored):
    data = load_data("folder", written(tmp_path, "list.csv", text, pictures))
    pixels = list(pictures.values())
    assert_images(data.train, [pixels[2], pixels[0]], [-1, -1])
    assert (data.train_labeled, data.test, data.classes) == (None, None, ())
    assert data.ignored == ignored


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_name_that_is_not_utf_8(tmp_path, pictures):
    name = os.fsencode(tmp_path) + b"/\xe9.png"
    os.rename(tmp_path / next(iter(pictures)), name)
    (tmp_path / "list.txt").write_bytes(b"\xe9.png\n")
    assert_images(load_data("folder", tmp_path / "list.txt").train, [*pictures.values()][:1], [-1])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "a.txt lists no training images"),
        ("a.csv", "", "a.csv has the columns none; its first line must name one path or file_n"),
        ("a.csv", "file,label\n{0},x", "has the columns file, label; its first line must name one"),
        ("a.csv", "path,Path\n{0},x", "has the columns path, path; its first line must name one"),
        ("a.csv", "path,file_name\n{0},x", "has the columns path, file_name; its first line must"),
        ("a.csv", "path,split\n{0},test", "a.csv lists no training images"),
        ("a.csv", "path,split\n{0},training", "line 2 of .*a.csv has the split 'training'; it"),
        ("a.csv", "path;label\n{0};x", "columns path;label; its .* with commas between"),
        ("a.tsv", "path,label\n{0},x", "columns path,label; its .* with tabs between"),
        ("a.txt", "{0} cat\n", "line 1 of .* cat', which is not a file; a label must follow a tab"),
        ("a.csv", "path,split\n{0},train\n{1},val", "line 3 of .*a.csv has the split 'val'; it"),
        ("a.csv", "path,label\n{0},x,y", "line 2 of .*a.csv has 3 columns; it must have 2, as"),
        ("a.csv", "path,label\n{0},x\n,y", "line 3 of .*a.csv names '', which is not a file"),
        ("a.txt", "{0}\n\nno.png\n", "line 3 of .*a.txt names 'no.png', which is not a file"),
        ("a.txt", "{0}\ntrain\n", "line 2 of .*a.txt names 'train', which is not a file"),
        ("a.txt", "{0}\t1\n{1}\n", "line 2 of .*a.txt has no label, but the first image has one;"),
        ("a.txt", "{0}\n{1}\t1\n", "line 2 of .*a.txt has a label, but the first image has none"),
        (
            "a.csv",
            "path,label,split\n{0},x,\n{1},y,test",
            "line 3 of .*a.csv has the class 'y', which no training image has",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, pictures, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_list(written(tmp_path, name, text, pictures))


def test_commands(tmp_path, pictures, monkeypatch, capsys):
    """A list is packed beside its images, trained on and embedded."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "list.csv", TABLE, pictures)
    assert main(["pack", "list.csv", "store", "--workers=0"]) == 0
    store = load_data("folder", "store")
    pixels = list(pictures.values())
    assert_images(store.train, pixels[:2], [1, 0])
    assert_images(store.test, pixels[2:], [1, 0])
    small = ["--ndf=4", "--n-rkhs=16", "--depth=1", "--batch-size=2", "--steps=1", "--workers=0"]
    flags = ["--recipe=folder", "--data-dir=list.csv", "--policy=stl10", "--name=run", *small]
    assert main(["pretrain", *flags]) == 0
    assert "data: 2 training images of 2 classes; 2 test images\n" in capsys.readouterr().err
    save_checkpoint("model.pt", AMDIM(64, 2, 6, 1))
    assert main(["embed", "model.pt", "list.csv", "features.npz", "--workers=0"]) == 0
    with np.load("features.npz") as found:
        assert found["names"].tolist() == list(pictures)
        assert found["labels"].tolist() == [1, 0, 1, 0]
    monkeypatch.undo()
    assert main(["pack", str(tmp_path / "store" / "x.bin"), str(tmp_path / "other")]) == 2
    assert "x.bin is not a folder; give the folder" in capsys.readouterr().err
