"""Data sets of Hugging Face in a folder: what ``datasets`` itself decodes, and what is wrong."""

import json
import logging
import os
import socket
import sys

import numpy as np
import pytest
import torch

from amdim_fast import load_data
from amdim_fast.data.datasets import describe_data
from amdim_fast.data.find import find_images
from tests.data.archives import data_set, images_of
from tests.data.image_files import write_folder

# Extras that users may lack; `make test` installs them.
datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
CLASSES = ["dog", "cat"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """(name, content, class) of four training images."""
    root = tmp_path_factory.mktemp("files")
    write_folder(root, train=2, test=1)
    return images_of(root, "train")


@pytest.fixture(autouse=True)
def without_network(tmp_path, monkeypatch):
    """Nothing is fetched; the cache is the test's own."""

    def connect(*_arguments):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def files_below(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def assert_as_decoded(images, expected):
    """Pixels and labels are those that the library gives."""
    pixels = np.stack([np.asarray(row["image"].convert("RGB")) for row in expected])
    np.testing.assert_array_equal(images.batch(torch.arange(len(images))).numpy(), pixels)
    assert images.labels.tolist() == [row["label"] for row in expected]


def test_datasets_reads_the_same(tmp_path, images):
    """Saved in several files, with an order of its own and a format."""
    train = data_set(datasets, images, CLASSES).select([2, 0, 3, 1]).with_format("arrow")
    test = data_set(datasets, images[1:], CLASSES)
    saved = datasets.DatasetDict(test=train, validation=test, train=train)
    saved.save_to_disk(tmp_path / "saved", num_shards={"train": 3, "test": 1, "validation": 1})
    before = files_below(tmp_path)
    data = load_data("folder", tmp_path / "saved")
    assert_as_decoded(data.train, train.with_format(None))
    assert_as_decoded(data.test, test)
    assert data.classes == ("dog", "cat")
    assert data.test.names() == ["validation/0", "validation/1", "validation/2"]
    assert data.train.name(3) == f"{tmp_path / 'saved'}: row 3 of train"
    assert describe_data(data) == (
        "data: 4 training images of 2 classes; 3 test images; left out: splits beside train and"
        " test (test)"
    )
    assert files_below(tmp_path) == before


def test_a_data_set_without_splits(tmp_path, images):
    train = data_set(datasets, images, CLASSES)
    train.save_to_disk(tmp_path / "saved")
    data = load_data("folder", tmp_path / "saved")
    assert_as_decoded(data.train, train)
    assert (data.test, data.train.names()[0]) == (None, "train/0")


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-0-of-2.parquet", "data/train-1-of-2.parquet", "data/test-0-of-1.parquet"),
        ("a.parquet", "b.parquet", "val.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "validation/0000.parquet"),
    ],
)  # fmt: skip
def test_parquet(tmp_path, images, names):
    root = tmp_path / "hub"
    first, second, test = (
        data_set(datasets, part, CLASSES) for part in (images[:3], images[3:], images)
    )
    for name, part in zip(names, (first, second, test), strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        part.to_parquet(root / name)
    before = files_below(root)
    data = load_data("folder", root)
    assert_as_decoded(data.train, [*first, *second])
    assert_as_decoded(data.test, test)
    assert files_below(root) == before
    test.to_parquet(root / names[1])
    os.utime(root / names[1], ns=(1, 1))
    assert_as_decoded(load_data("folder", root).train, [*first, *test])


def test_parquet_in_a_subfolder(tmp_path, images):
    """As hubs have configurations; without a word of the split beside with one, only the latter."""
    for name, part in (("train", images[:3]), ("test", images[1:]), ("more", images)):
        (tmp_path / "default").mkdir(exist_ok=True)
        data_set(datasets, part, CLASSES).to_parquet(tmp_path / "default" / f"{name}-0.parquet")
    data = load_data("folder", tmp_path)
    assert_as_decoded(data.train, data_set(datasets, images[:3], CLASSES))
    assert_as_decoded(data.test, data_set(datasets, images[1:], CLASSES))
    assert data.ignored == (".parquet files beside train and test (without a split's name)",)


@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_bytes_without_a_type(tmp_path, images, kind):
    """Parquet that other libraries wrote."""
    contents = [content for _, content, _ in images]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    column_of = {
        "struct": lambda: pa.array(column(images), struct),
        "binary": lambda: pa.array(contents, pa.binary()),
        "large_binary": lambda: pa.array(contents, pa.large_binary()),
    }[kind]
    table = pa.table({"img": column_of(), "label": pa.array([1, 0, 1, 0])})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = load_data("folder", tmp_path)
    expected = data_set(datasets, images, CLASSES)
    pixels = np.stack([np.asarray(row["image"].convert("RGB")) for row in expected])
    np.testing.assert_array_equal(data.train.batch(torch.arange(4)).numpy(), pixels)
    assert (data.classes, data.train.labels.tolist()) == (("0", "1"), [1, 0, 1, 0])


@pytest.mark.parametrize("shows", [True, False])
def test_nothing_is_printed(tmp_path, images, capfd, monkeypatch, shows):
    """Not even of damage; the user's settings of ``datasets`` come back."""
    data_set(datasets, images, CLASSES).to_parquet(tmp_path / "a.parquet")
    logger = logging.getLogger("datasets")
    monkeypatch.setattr(logger, "level", logging.INFO)
    set_bars = {True: datasets.enable_progress_bars, False: datasets.disable_progress_bars}
    before = datasets.are_progress_bars_disabled()
    set_bars[shows]()
    try:
        capfd.readouterr()
        find_images(tmp_path)
        (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
        with pytest.raises(ValueError, match=f"{tmp_path} cannot be read by datasets"):
            find_images(tmp_path)
        assert capfd.readouterr() == ("", "")
        assert datasets.are_progress_bars_disabled() == (not shows)
        assert logger.level == logging.INFO
    finally:
        set_bars[not before]()


def test_splits_that_differ_in_case(tmp_path, images, monkeypatch):
    whole = data_set(datasets, images, CLASSES)
    datasets.DatasetDict(Train=whole, train=whole).save_to_disk(tmp_path / "saved")
    loaded = datasets.DatasetDict(Train=whole, train=whole)
    monkeypatch.setattr(datasets, "load_from_disk", lambda path: loaded)  # on any file system
    with pytest.raises(ValueError, match="saved has the splits Train, train, of which some differ"):
        find_images(tmp_path / "saved")


def saved(tmp_path, columns, kinds):
    kinds = datasets.Features({name: kinds[name] for name in columns})
    datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def column(images):
    return [{"bytes": content, "path": None} for _, content, _ in images]


PICTURES = datasets.Image()
TEXT, NUMBER = datasets.Value("string"), datasets.Value("uint8")
BOOL = datasets.Value("bool")
TWO = datasets.ClassLabel(names=["b", "a"])


@pytest.mark.parametrize(
    ("columns", "kinds", "classes", "labels", "ignored"),
    [
        ({"label": [10, 9, 9, 10]}, {"label": NUMBER}, ("9", "10"), [1, 0, 0, 1], ()),
        ({"labels": list("xyxy")}, {"labels": TEXT}, ("x", "y"), [0, 1, 0, 1], ()),
        ({"kind": [1, 0, 1, 1]}, {"kind": TWO}, ("b", "a"), [1, 0, 1, 1], ()),
        ({"label": [1, 1, 1, 1]}, {"label": TWO}, (), [-1] * 4, ("labels of a single class (a)",)),
        ({"label": [None, -1, -1, -1]}, {"label": TWO}, (), [-1] * 4, ()),
        ({"label": [True, False, True, False]}, {"label": BOOL}, ("0", "1"), [1, 0, 1, 0], ()),
        (
            {"label": [0.5] * 4, "labels": [[1]] * 4, "class": [0, 1, 0, 1]},
            {"label": datasets.Value("float32"), "labels": [NUMBER], "class": NUMBER},
            (),
            [-1] * 4,
            ("3 columns that are no labels (label (float32), labels (List), class (uint8))",),
        ),
        (
            {"caption": list("xyxy")},
            {"caption": TEXT},
            (),
            [-1] * 4,
            ("1 columns that are no labels (caption (string))",),
        ),
        (
            {"coarse_label": [0, 0, 0, 1], "fine_label": [0, 1, 0, 1]},
            {"coarse_label": TWO, "fine_label": TWO},
            ("b", "a"),
            [0, 1, 0, 1],
            (),
        ),
        (
            {"one": [0, 0, 0, 1], "other": [0, 1, 0, 1]},
            {"one": TWO, "other": TWO},
            (),
            [-1] * 4,
            ("labels of several kinds (one, other)",),
        ),
    ],
)
def test_columns(tmp_path, images, columns, kinds, classes, labels, ignored):
    """The images' column has any name if it is the only one; others may hold images too."""
    for names in (["picture"], ["mask", "image"], ["mask", "img"]):
        root = tmp_path / names[-1]
        all_columns = columns | {name: column(images) for name in names}
        listing = find_images(saved(root, all_columns, kinds | dict.fromkeys(names, PICTURES)))
        assert listing.splits["train"][1] == labels
        assert (listing.classes, listing.ignored) == (classes, ignored)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": list("xyxy")},
            r"saved, train has the columns text \(string\), of which none",
        ),
        (
            {"mask": 0, "scan": 0},
            r"mask \(Image\), scan \(Image\), of which mask, scan hold",
        ),
        ({"image": 0, "label": [0, 1, None, 1]}, "saved: row 2 of train has no label, but the"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, images, columns, message):
    columns = {name: column(images) if values == 0 else values for name, values in columns.items()}
    kinds = {"text": TEXT, "label": TWO} | dict.fromkeys(("image", "mask", "scan"), PICTURES)
    with pytest.raises(ValueError, match=message):
        find_images(saved(tmp_path, columns, kinds))


def test_rows_without_an_image(tmp_path, images):
    """They are bad images, not the end; no path of another file is followed."""
    whole = data_set(datasets, images, CLASSES).select_columns(["image"])
    rows = column(images)
    rows[1:3] = None, {"bytes": None, "path": "/etc/hostname"}
    table = pa.table({"image": rows}, schema=whole.features.arrow_schema)
    parquet.write_table(table, tmp_path / "hub.parquet")
    data = load_data("folder", tmp_path, skip_bad=True, workers=0, progress=False)
    assert data.left_out["train"] == {
        "train/1": f"{tmp_path}: row 1 of train has no image",
        "train/2": f"{tmp_path}: row 2 of train has only the path '/etc/hostname', no image",
    }


def test_no_rows(tmp_path, images, monkeypatch):
    """``datasets`` of today does not even read them."""
    empty = data_set(datasets, images[:0], CLASSES)
    empty.to_parquet(tmp_path / "hub.parquet")
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be read by datasets"):
        find_images(tmp_path)
    (tmp_path / "dataset_dict.json").touch()
    loaded = datasets.DatasetDict(train=empty)
    monkeypatch.setattr(datasets, "load_from_disk", lambda path: loaded)
    with pytest.raises(ValueError, match=f"{tmp_path} has no rows in train"):
        find_images(tmp_path)


def test_damage_is_a_sentence(tmp_path, images):
    """Also offsets that lead out of the file, which would end the process."""
    data_set(datasets, images, CLASSES).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    whole = arrow.read_bytes()
    ends = np.cumsum([0, *(len(content) for _, content, _ in images)]).astype("<i4").tobytes()
    assert whole.count(ends) == 1
    wrong = np.frombuffer(ends, "<i4").copy()
    wrong[2] = 2**30
    for content, message in (
        (whole.replace(ends, wrong.tobytes()), "saved, train is damaged in its column image"),
        (whole[: len(whole) // 2], "saved cannot be read by datasets"),
        (b"", "saved cannot be read by datasets"),
    ):
        arrow.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            find_images(tmp_path / "saved")
        assert "\n" not in str(caught.value)
    arrow.write_bytes(whole)
    for name in ("state.json", "dataset_info.json"):
        text = (tmp_path / "saved" / name).read_text()
        for damaged in ("{", "[]", text.replace("ClassLabel", "os.system")):
            if damaged == text:
                continue
            (tmp_path / "saved" / name).write_text(damaged)
            with pytest.raises(ValueError, match="saved cannot be read by datasets"):
                find_images(tmp_path / "saved")
        (tmp_path / "saved" / name).write_text(text)
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state | {"_format_type": "torch"}))
    assert len(find_images(tmp_path / "saved").splits["train"][0]) == 4


def test_it_needs_datasets(tmp_path, images, monkeypatch):
    data_set(datasets, images, CLASSES).save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs datasets, .*'amdim-fast\[huggingface\]'"):
        load_data("folder", tmp_path / "saved")
