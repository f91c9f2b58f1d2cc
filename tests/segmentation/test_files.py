import numpy as np
import pytest
import torch
from PIL import Image

from amdim_fast import AMDIM, export_encoder, save_checkpoint
from amdim_fast.segmentation.files import segment_files
from amdim_fast.segmentation.posterior import colors, segment
from amdim_fast.views.params import POLICIES
from amdim_fast.views.preprocessing import Preprocessing
from tests.processes import run


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "mixture.pt"
    save_checkpoint(path, AMDIM(32, 4, 8, 1, components=3))
    return path


def size_of(path):
    with Image.open(path) as image:
        return image.size


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def write_pictures(folder, *shapes):
    folder.mkdir(exist_ok=True)
    paths = []
    for number, (height, width) in enumerate(shapes):
        generator = np.random.default_rng(number)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(folder / f"picture{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_files_of_small_and_large_pictures(checkpoint, tmp_path):
    pictures = write_pictures(tmp_path / "in", (32, 32), (45, 60), (20, 25))
    written = segment_files(checkpoint, pictures, tmp_path / "out", stride=16)
    names = {path.name for path in written}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    assert {"picture0-r7.png", "picture0-r5.png", "picture1-dense.png", "picture2.npz"} <= names
    assert "picture0-dense.png" not in names
    assert "picture2-dense.png" not in names
    assert size_of(tmp_path / "out" / "picture1-r7.png") == (45, 45)
    assert size_of(tmp_path / "out" / "picture1-dense.png") == (60, 45)
    with np.load(tmp_path / "out" / "picture1.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == {
            "r7": (3, 7, 7),
            "r5": (3, 5, 5),
            "dense": (3, 45, 60),
        }
        for name in arrays:
            assert np.allclose(arrays[name].sum(0), 1, atol=1e-5)


def test_posterior_is_that_of_the_model_and_colors_are_its_argmax(checkpoint, tmp_path):
    pictures = write_pictures(tmp_path / "in", (32, 32), (32, 32))
    segment_files(checkpoint, pictures, tmp_path / "out", opacity=1.0)
    model = torch.load(checkpoint, weights_only=True)
    again = AMDIM(32, 4, 8, 1, components=3)
    again.load_state_dict(model["model"])
    images = torch.stack([torch.from_numpy(pixels_of(path)) for path in pictures])
    expected = segment(again, Preprocessing.of(POLICIES["cifar"])(images))
    with np.load(tmp_path / "out" / "picture1.npz") as arrays:
        assert np.array_equal(arrays["r7"], expected[1].numpy())
    shown = pixels_of(tmp_path / "out" / "picture1-r7.png")
    # The receptive fields of the middle locations are centred at the picture's middle.
    assert tuple(shown[16, 16]) == tuple(colors(3)[expected[1, :, 3, 3].argmax()].tolist())


def test_a_bank_serves_one_picture(checkpoint, tmp_path):
    first, *bank = write_pictures(tmp_path / "in", (40, 40), (32, 50), (33, 33))
    segment_files(checkpoint, [first], tmp_path / "out", bank=bank)
    assert (tmp_path / "out" / "picture0.npz").exists()


def test_bad_input_is_one_sentence_and_writes_nothing(checkpoint, tmp_path):
    first, second = write_pictures(tmp_path / "in", (32, 32), (32, 32))
    (other,) = write_pictures(tmp_path / "other", (32, 32))
    plain = tmp_path / "plain.pt"
    save_checkpoint(plain, AMDIM(32, 4, 8, 1))
    out = tmp_path / "out"
    for arguments, message in (
        ((checkpoint, [first], out), "one image has no negatives; give more images, or files"),
        ((checkpoint, [first, other], out), "two files named 'picture0'"),
        ((plain, [first, second], out), "has no components; pre-train with --mixture K"),
    ):
        with pytest.raises(ValueError, match=message):
            segment_files(*arguments)
    assert not out.exists()
    segment_files(checkpoint, [first, second], out)
    with pytest.raises(FileExistsError, match=r"picture0-r7\.png exists; choose another folder"):
        segment_files(checkpoint, [first, second], out)
    segment_files(checkpoint, [first, second], out, overwrite=True)


def test_an_export_carries_the_components(checkpoint, tmp_path):
    pictures = write_pictures(tmp_path / "in", (32, 32), (32, 32))
    export_encoder(checkpoint, tmp_path / "export")
    segment_files(checkpoint, pictures, tmp_path / "first")
    segment_files(tmp_path / "export", pictures, tmp_path / "second")
    for name in ("picture0", "picture1"):
        with (
            np.load(tmp_path / "first" / f"{name}.npz") as first,
            np.load(tmp_path / "second" / f"{name}.npz") as second,
        ):
            assert np.array_equal(first["r5"], second["r5"])


def test_command(checkpoint, tmp_path):
    pictures = write_pictures(tmp_path / "in", (32, 32), (32, 40))
    command = ["-m", "amdim_fast", "segment", checkpoint, *pictures]
    finished = run([*command, "--out-dir", tmp_path / "out"], tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == len(list((tmp_path / "out").iterdir())) == 7
