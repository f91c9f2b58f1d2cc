"""What of a folder counts as an image, a class or a test set, and what is left out, and said."""

import os
import shutil

import pytest
import torch
from PIL import Image

from amdim_fast.data.datasets import describe_data, load_data, without_labels
from amdim_fast.data.folders import list_images
from amdim_fast.data.packing import pack
from tests.data.image_files import picture, write_folder


def save(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(0)).save(path, "PNG")


def names(listing, split="train"):
    return listing.splits[split][0]


def test_junk_is_neither_class_nor_image(tmp_path):
    """What notebooks, macOS and network drives leave behind; the rest is as it was."""
    write_folder(tmp_path)
    clean = list_images(tmp_path)
    assert clean.ignored == ()
    train = tmp_path / "train"
    save(train / ".ipynb_checkpoints" / "000-checkpoint.png", train / "__MACOSX" / "a.png")
    save(train / "cat" / "._000.jpg", train / "cat" / "@eaDir" / "000.png", train / ".hidden.png")
    save(train / "preview.png", tmp_path / "sheet.png", tmp_path / "extra" / "a.png")
    (train / ".DS_Store").write_bytes(b"x")
    listing = list_images(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert listing.splits == clean.splits
    assert set(listing.ignored) == {
        "2 beside the training folder (extra, sheet.png)",
        "1 images beside the class folders (train/preview.png)",
        "5 hidden or of the system (train/.hidden.png, train/.ipynb_checkpoints, train/__MACOSX,"
        " ...)",
    }
    assert describe_data(load_data("folder", tmp_path)) == (
        "data: 12 training images of 2 classes; 8 test images; left out: "
        + ", ".join(listing.ignored)
    )


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Val"), ("train", "valid"), ("TRAIN", "Validation"), ("training", "test")],
)
def test_usual_names_in_any_case(tmp_path, train, test):
    write_folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / train)
    (tmp_path / "val").rename(tmp_path / test)
    listing = list_images(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert [name.split("/")[0] for name in names(listing)] == [train] * 12
    assert [name.split("/")[0] for name in names(listing, "test")] == [test] * 8


def test_of_two_test_folders_the_first_counts(tmp_path):
    write_folder(tmp_path)
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    listing = list_images(tmp_path)
    assert names(listing, "test")[0] == "val/cat/000.png"
    assert listing.ignored == ("1 beside the training folder (test)",)


def test_test_images_beside_class_folders_are_not_trained_on(tmp_path):
    """A folder named like a test set is one where it has the classes, and a class elsewhere."""
    write_folder(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).rename(tmp_path / name)
    (tmp_path / "train").rmdir()
    listing = list_images(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert (len(names(listing)), len(names(listing, "test"))) == (12, 8)
    write_folder(tmp_path / "tubes", classes=("valid", "broken"), test=0)
    listing = list_images(tmp_path / "tubes" / "train")
    assert listing.classes == ("broken", "valid")
    assert listing.splits.keys() == {"train"}


def test_as_many_images_as_folders_are_unlabeled(tmp_path):
    save(*(tmp_path / f"{number}.png" for number in range(4)))
    save(tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "test" / "x.png")
    listing = list_images(tmp_path)
    assert listing.classes == ()
    assert names(listing) == ["0.png", "1.png", "2.png", "3.png", "a/x.png", "b/x.png"]
    assert listing.ignored == ("test images as nothing is labeled (test)",)


def test_links(tmp_path):
    """Each image once: a loop was followed forty times, a dangling link ended the run."""
    write_folder(tmp_path, test=0)
    cat = tmp_path / "train" / "cat"
    (cat / "loop").symlink_to(tmp_path / "train")
    (cat / "self").symlink_to(cat)
    (cat / "gone.png").symlink_to(tmp_path / "absent.png")
    (cat / "ring.png").symlink_to(cat / "ring.png")
    (cat / "ring").symlink_to(cat / "ring")
    os.mkfifo(cat / "pipe.png")
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "a.png")
    (cat / "linked").symlink_to(tmp_path / "elsewhere")
    (cat / "again.png").symlink_to(cat / "000.png")
    listing = list_images(tmp_path)
    plain = [f"train/{name}/{number:03d}.png" for name in ("cat", "dog") for number in range(6)]
    expected = [*plain[:6], "train/cat/again.png", "train/cat/linked/a.png", *plain[6:]]
    assert names(listing) == expected
    assert listing.ignored == (
        "1 beside the training folder (elsewhere)",
        "3 links to nothing, or no regular files (train/cat/gone.png, train/cat/pipe.png,"
        " train/cat/ring.png)",
        "2 links back to a folder around them (train/cat/loop, train/cat/self)",
    )


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, test=0)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match=r"train/dog cannot be read \(Permission denied\)$"):
        list_images(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_single_class_is_no_label(tmp_path, packed):
    write_folder(tmp_path / "data", classes=("cat",))
    source = tmp_path / "data"
    if packed:
        pack(source, tmp_path / "store", workers=0, progress=False)
        source = tmp_path / "store"
    data = load_data("folder", source)
    assert (data.classes, data.train_labeled, data.test) == ((), None, None)
    assert data.train.labels.tolist() == [-1] * 6
    line = "data: 6 training images without labels; no test images"
    if not packed:
        line += (
            "; left out: labels of a single class (cat), test images as nothing is labeled (val)"
        )
    assert describe_data(data) == line


def test_without_labels(tmp_path):
    write_folder(tmp_path / "data")
    pack(tmp_path / "data", tmp_path / "store", workers=0, progress=False)
    for source in ("data", "store"):
        data = load_data("folder", tmp_path / source)
        bare = without_labels(data)
        assert (bare.classes, bare.train_labeled, bare.test) == ((), None, None)
        assert bare.train.labels.tolist() == [-1] * 12
        assert data.train.labels.tolist() == [0] * 6 + [1] * 6
        every = torch.arange(12)
        assert torch.equal(bare.train.batch(every), data.train.batch(every))
