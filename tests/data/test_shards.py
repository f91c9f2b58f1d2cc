"""Which files of a folder are read, of which split they are, and what is said of the others."""

import os
import re

import pytest

from amdim_fast.data.find import find_images, is_images_file
from tests.data.archives import PNG, sample, write_tar


@pytest.mark.parametrize(
    ("shards", "train", "test", "ignored"),
    [
        (
            ["b.tar", "a.TAR", ".c.tar"],
            ["a.TAR", "b.tar"],
            [],
            ("1 .tar files hidden or of the system (.c.tar)",),
        ),
        (["x-train-0.tar", "x_val_0.tar"], ["x-train-0.tar"], ["x_val_0.tar"], ()),
        (["train2017_0.tar", "Test2017_0.tar"], ["train2017_0.tar"], ["Test2017_0.tar"], ()),
        (
            ["train/0.tar", "Val/0.tar", "x/0.tar"],
            ["train/0.tar"],
            ["Val/0.tar"],
            ("1 .tar files in other folders (x/0.tar)",),
        ),
        (["a-0.tar", "s/a-1.tar"], ["a-0.tar"], [], ("1 .tar files in other folders (s/a-1.tar)",)),
        (["s/a-train-0.tar", "s/a-val-1.tar"], ["s/a-train-0.tar"], ["s/a-val-1.tar"], ()),
        (
            ["my-test-set-train-00.tar", "my-test-set-val-00.tar"],
            ["my-test-set-train-00.tar"],
            ["my-test-set-val-00.tar"],
            (
                "2 names of several splits (my-test-set-train-00.tar is train,"
                " my-test-set-val-00.tar is val)",
            ),
        ),
        (["trainset-0.tar", "val-0.tar"], ["trainset-0.tar"], ["val-0.tar"], ()),
        (["valley-0.tar", "valley-1.tar"], ["valley-0.tar", "valley-1.tar"], [], ()),
        (["a.tar", "val-a.tar"], ["a.tar"], ["val-a.tar"], ()),
        (["contest-1.tar", "test-1.tar"], ["contest-1.tar"], ["test-1.tar"], ()),
        (
            ["val-0.tar", "val-1.tar"],
            ["val-0.tar", "val-1.tar"],
            [],
            ("the name of the only split (val)",),
        ),
        (
            ["a.tar", "train.tar", "test.tar", "validation.tar", "other/train.tar"],
            ["train.tar"],
            ["validation.tar"],
            (
                "tar files beside train and test (without a split's name, test)",
                "1 .tar files in other folders (other/train.tar)",
            ),
        ),
    ],
)  # fmt: skip
def test_splits(tmp_path, shards, train, test, ignored):
    for number, shard in enumerate(shards):
        write_tar(tmp_path / shard, sample(number, 0) | sample(f"{number}b", 1))
    listing = find_images(tmp_path)
    found = {
        split: list(dict.fromkeys(os.path.dirname(name) for name in names))
        for split, (names, _) in listing.splits.items()
    }
    assert (found["train"], found.get("test", []), listing.ignored) == (train, test, ignored)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (["trainset-0.tar", "valset-0.tar"], "valset-0.tar, of which 'valset' may mean a split"),
        (["cocotrain-0.tar", "cocoval-0.tar"], "cocoval-0.tar, of which 'cocoval' may mean a"),
        (["testset-0.tar", "val-0.tar"], "testset-0.tar, of which 'testset' may mean a split; h"),
        (["cat/0.tar", "dog/0.tar"], "has .tar files in the folders cat, dog; give one of these"),
    ],
)
def test_splits_that_cannot_be_told(tmp_path, shards, message):
    for shard in shards:
        write_tar(tmp_path / shard, sample(0))
    with pytest.raises(ValueError, match=f"^{tmp_path} has.*{message}|^{tmp_path} {message}"):
        find_images(tmp_path)


def test_no_split_for_training(tmp_path):
    for name in ("val.tar", "test.tar"):
        write_tar(tmp_path / name, sample(0))
    message = rf"{tmp_path} has the splits test, val; one of them must be called train"
    with pytest.raises(ValueError, match=message):
        find_images(tmp_path)


def test_what_lies_beside_tars_is_named(tmp_path):
    for name in ("a-1.tar.gz", "x/a-2.tgz", "b.parquet", "train/cat/0.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.tar").symlink_to("nothing")
    write_tar(tmp_path / "a-0.tar", sample(0) | {"0.mask.png": PNG} | sample("i.1"))
    assert find_images(tmp_path).ignored == (
        "1 .tar files that are links to nothing, or no regular files (b.tar)",
        "1 samples with further images (a-0.tar/0: 0.mask.png has the extension .mask.png, as"
        " extensions begin at the first dot of a name (WebDataset))",
        "1 samples without an image (a-0.tar/i: i.1.png has the extension .1.png, as extensions"
        " begin at the first dot of a name (WebDataset))",
        "1 .parquet files (b.parquet)",
        "2 compressed tar files (a-1.tar.gz, x/a-2.tgz)",
        "1 .npy files, images only with --channels (train/cat/0.npy)",
    )


@pytest.mark.parametrize(
    ("files", "path", "error", "message"),
    [
        (["a.tar.gz", "b.tgz"], "", FileNotFoundError, "no images but 2 compressed tar files (a.t"),
        (["x/y/a.tar"], "", FileNotFoundError, "has no images, but {root}/x/y has files that may"),
        (["x/y/state.json", "x/y/dataset_info.json"], "", FileNotFoundError, "but {root}/x/y has"),
        ([], "no.tar", FileNotFoundError, "{root}/no.tar does not exist; give a file or folder"),
        ([], "no.tgz", FileNotFoundError, "{root}/no.tgz does not exist; "),
        ([], "no.csv", FileNotFoundError, "{root}/no.csv does not exist; "),
        (["a.parquet"], "a.parquet", ValueError, "one file of a data set of Hugging Face; give it"),
        (["a.arrow"], "a.arrow", ValueError, "give its folder, {root}"),
    ],
)
def test_paths_that_hold_no_images(tmp_path, files, path, error, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(error, match=re.escape(message.format(root=tmp_path))):
        find_images(tmp_path / path)
    assert is_images_file(tmp_path / path) == path.startswith("a.")


def test_tars_beside_images_are_named(tmp_path):
    """A folder of images stays one."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(PNG)
    write_tar(tmp_path / "train.tar", sample(0))
    listing = find_images(tmp_path)
    assert listing.splits["train"][0] == ["a/0.png", "b/0.png"]
    assert listing.ignored == ("1 .tar files (train.tar)",)
