"""``embed`` and its command: files of features, against torchvision and a plain forward."""

import copy
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from amdim_fast import AMDIM, Preprocessing, embed, save_checkpoint
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import LOADERS, ImageData
from amdim_fast.data.decoding import BadImage
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.data.packing import pack
from amdim_fast.evaluation import feature_files
from amdim_fast.views.params import POLICIES
from tests.data.image_files import picture, write_folder

POLICY = POLICIES["stl10"]
QUIET = {"workers": 0, "progress": False, "batch_size": 5}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = AMDIM(64, 2, 6, 1)
    model.preprocessing = Preprocessing.of(POLICY)
    with torch.no_grad():
        model.encoder(torch.randn(8, 3, 64, 64))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven training and three test images, of two sizes; and their pixels."""
    root = tmp_path_factory.mktemp("images")
    return root, write_folder(root, train=4, test=2, sizes=((80, 70), (71, 90)))


def expected_features(model, pixels):
    """One image at a time, by torchvision and the encoder itself."""
    encoder = copy.deepcopy(model.encoder).eval()
    transform = transforms.Compose(
        [
            transforms.Resize(70, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize(POLICY.mean, POLICY.std),
        ]
    )
    with torch.no_grad():
        found = [encoder(transform(Image.fromarray(image))[None]).r1.flatten() for image in pixels]
    return torch.stack(found).numpy()


def assert_holds(found, model, pixels):
    """Features in the order of the training images, then of the test images."""
    np.testing.assert_allclose(
        found["features"], expected_features(model, pixels.values()), atol=2e-6, rtol=0
    )
    assert found["features"].dtype == np.float32
    assert found["names"].tolist() == list(pixels)
    assert found["splits"].tolist() == ["train"] * 8 + ["test"] * 4
    assert found["classes"][found["labels"]].tolist() == [name.split("/")[1] for name in pixels]


def test_features_of_a_folder_and_of_its_store(model, folder, tmp_path):
    root, pixels = folder
    written = embed(model, root, tmp_path / "features.npz", **QUIET)
    assert (written.images, written.width, written.skipped) == (12, 6, ())
    with np.load(tmp_path / "features.npz") as found:
        assert_holds(found, model, pixels)
        wrong = dict(found) | {"names": found["names"][::-1]}
    with pytest.raises(AssertionError):
        assert_holds(wrong, model, pixels)
    pack(root, tmp_path / "store", workers=0, progress=False)
    embed(model, tmp_path / "store", tmp_path / "packed.npz", **QUIET)
    assert (tmp_path / "packed.npz").read_bytes() == (tmp_path / "features.npz").read_bytes()


def test_without_labels_there_are_none(model, tmp_path):
    Image.fromarray(picture(0, 80, 80)).save(tmp_path / "a.png")
    Image.fromarray(picture(1, 80, 80)).save(tmp_path / "b.png")
    embed(model, tmp_path, tmp_path / "all.npz", **QUIET)
    embed(model, tmp_path / "b.png", tmp_path / "one.npz", **QUIET)
    with np.load(tmp_path / "all.npz") as all_, np.load(tmp_path / "one.npz") as one:
        assert sorted(all_) == sorted(one) == ["features", "names", "splits"]
        assert all_["names"].tolist() == ["a.png", "b.png"]
        assert one["names"].tolist() == ["b.png"]
        expected = expected_features(model, [picture(1, 80, 80)])
        np.testing.assert_allclose(one["features"], expected, atol=2e-6, rtol=0)


def half_labeled():
    pixels = np.stack([picture(seed, 70, 70) for seed in range(5)])
    train = TensorImages(torch.from_numpy(pixels[:3]), torch.tensor([1, -1, 0]))
    test = TensorImages(torch.from_numpy(pixels[3:]), torch.tensor([0, 1]))
    return pixels, ImageData(train, train, test, ("cat", "dog"))


@pytest.mark.parametrize("row_group", [1, 5 * 24, 1 << 20])
def test_parquet(model, tmp_path, monkeypatch, row_group):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(feature_files, "_ROW_GROUP", row_group)
    pixels, data = half_labeled()
    embed(model, data, tmp_path / "features.parquet", **QUIET | {"batch_size": 2})
    file = parquet.ParquetFile(tmp_path / "features.parquet")
    assert file.num_row_groups == {1: 3, 5 * 24: 1, 1 << 20: 1}[row_group]
    found = file.read()
    assert found.column_names == ["name", "split", "label", "class", "features"]
    assert found["label"].to_pylist() == [1, None, 0, 0, 1]
    assert found["class"].to_pylist() == ["dog", None, "cat", "cat", "dog"]
    assert found["split"].to_pylist() == ["train"] * 3 + ["test"] * 2
    assert found["name"].to_pylist() == [*(f"image {i}" for i in range(3)), "image 0", "image 1"]
    features = np.array(found["features"].to_pylist(), np.float32)
    np.testing.assert_allclose(features, expected_features(model, pixels), atol=2e-6, rtol=0)
    unlabeled = ImageData(data.test, None, None, ())
    embed(model, unlabeled, tmp_path / "plain.parquet", **QUIET)
    assert parquet.read_table(tmp_path / "plain.parquet").column_names == [
        *("name", "split", "features")
    ]


def test_parquet_needs_pyarrow(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    _, data = half_labeled()
    with pytest.raises(ModuleNotFoundError, match=r"needs pyarrow, .* 'amdim-fast\[parquet\]'"):
        embed(model, data, tmp_path / "features.parquet", **QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_name_that_is_not_utf_8(model, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(picture(0, 80, 80)).save(tmp_path / name)
    embed(model, tmp_path, tmp_path / "features.npz", **QUIET)
    with np.load(tmp_path / "features.npz") as found:
        assert found["names"].tolist() == [name]
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"'caf\\udce9\.png' is not UTF-8, .* write \.npz"):
        embed(model, tmp_path, tmp_path / "features.parquet", **QUIET)


def test_command(model, folder, tmp_path, monkeypatch, capfd):
    """By path or by name, bad files left out or not; nothing half-written stays."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("model.pt", model)
    root, pixels = folder
    command = ["embed", "model.pt", str(root), "out.npz", "--workers=0"]
    assert main(command) == 0
    said = capfd.readouterr()
    assert said.out == "wrote out.npz: 12 images, 6 features of each\n"
    assert "data: 8 training images of 2 classes; 4 test images" in said.err
    with np.load("out.npz") as found:
        assert_holds(found, model, pixels)
    before = os.stat("out.npz").st_ino
    for changed, message in (
        (command, "out.npz exists already; choose another name or allow --overwrite"),
        ([*command[:3], "out.csv"], "out.csv ends in neither .npz nor .parquet; give one of them"),
        ([*command[:3], "no/out.npz"], "no is not a folder; create it to write out.npz"),
        ([*command[:2], "none", "new.npz"], "none is not a folder"),
        ([*command[:3], "new.npz", "--batch-size=0"], "batch_size is 0; it must be"),
    ):
        assert main(changed) == 2
        said = capfd.readouterr()
        assert message in said.err
        assert (said.out, said.err.count("\n")) == ("", 1)
    assert main([*command, "--overwrite", "--no-progress"]) == 0
    assert capfd.readouterr().err == ""
    assert os.stat("out.npz").st_ino != before

    os.mkdir("some")
    Image.fromarray(picture(0, 80, 80)).save("some/good.png")
    (tmp_path / "some/bad.png").write_bytes(b"no image")
    command = ["embed", "model.pt", "some", "some.npz", "--workers=0", "--no-progress"]
    assert main(command) == 2
    assert "bad.png is not an image" in capfd.readouterr().err
    assert main([*command, "--skip-bad"]) == 0
    said = capfd.readouterr()
    assert said.out.count("left out: ") == 1
    assert (said.out.count("bad.png"), said.err) == (1, "")
    with np.load("some.npz") as found:
        assert found["names"].tolist() == ["good.png"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.pt", "out.npz", "some", "some.npz"}


def test_a_folder_goes_before_a_data_set_of_its_name(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = half_labeled()[1]
    monkeypatch.setitem(LOADERS, "digits", lambda _root, _download: data)
    assert embed(model, "digits", "named.npz", **QUIET).images == 5
    os.mkdir("digits")
    Image.fromarray(picture(0, 80, 80)).save("digits/a.png")
    assert embed(model, "digits", "folder.npz", **QUIET).images == 1


def test_features_that_are_not_finite_leave_no_file(model, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.encoder.layer_list[0].conv.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match="the features of image 0 are not finite"):
        embed(broken, half_labeled()[1], tmp_path / "features.npz", **QUIET)
    assert not list(tmp_path.iterdir())


def test_files_of_too_many_pixels_are_named(model, folder, tmp_path):
    root, _ = folder
    first = next(path for path in sorted(root.rglob("*")) if path.is_file())
    for data in (root, first):
        with pytest.raises(BadImage, match="more than 100; allow them with --max-pixels"):
            embed(model, data, tmp_path / "out.npz", max_pixels=100, **QUIET)
    assert list(tmp_path.iterdir()) == []
