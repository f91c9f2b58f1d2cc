"""Files, arrays, lists, stores and sets in memory of channels other than three."""

import numpy as np
import pytest
import torch
from PIL import Image

from amdim_fast.cli.main import main
from amdim_fast.data.channels import decode_channels
from amdim_fast.data.datasets import describe_data, load_data
from amdim_fast.data.decoding import BadImage
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.data.loader import ordered_batches
from amdim_fast.data.packed_store import read_store
from amdim_fast.data.packing import pack
from tests.data.archives import write_tar


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def arrays(tmp_path):
    """Class folders of arrays [H, W, 5] of two sizes; {name: pixels} in the listing's order."""
    found = {}
    for split in ("train", "test"):
        for name in ("fog", "sun"):
            folder = tmp_path / "bands" / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                pixels = noise(9 + index, 14, 5, seed=len(found))
                np.save(folder / f"{index}.npy", pixels)
                found[f"{split}/{name}/{index}.npy"] = pixels
    return tmp_path / "bands", found


def all_images(images, **options):
    with ordered_batches(images, 2, **options) as batches:
        return [image.numpy() for batch in batches for image in batch.images]


def test_files_are_gray_or_have_alpha(tmp_path):
    color, alpha = noise(7, 8, 3), noise(7, 8, 4)
    Image.fromarray(color).save(tmp_path / "color.png")
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    luma = np.array(Image.fromarray(color).convert("L"))
    assert np.array_equal(decode_channels(tmp_path / "color.png", channels=1), luma[..., None])
    assert np.array_equal(decode_channels(tmp_path / "alpha.png", channels=4), alpha)
    opaque = decode_channels(tmp_path / "color.png", channels=4)
    assert np.array_equal(opaque[..., :3], color)
    assert (opaque[..., 3] == 255).all()
    deep = noise(7, 8).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(
        decode_channels(tmp_path / "deep.png", channels=1)[..., 0], (deep // 257).astype(np.uint8)
    )
    with pytest.raises(
        BadImage,
        match=r"color.png is no .npy file, and others have 1, 3 or 4 channels, not 5; save uint8",
    ):
        decode_channels(tmp_path / "color.png", channels=5)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_whatever_their_order(tmp_path, order):
    pixels = noise(5, 6, 2)
    np.save(tmp_path / "a.npy", np.asarray(pixels, order=order))
    found = decode_channels(tmp_path / "a.npy", channels=2)
    assert np.array_equal(found, pixels)
    assert found.flags.c_contiguous
    np.save(tmp_path / "flat.npy", np.asarray(pixels[..., 0], order=order))
    found = decode_channels(tmp_path / "flat.npy", channels=1)
    assert np.array_equal(found, pixels[..., :1])


def claiming(path, shape):
    """A header that claims a shape, with a few bytes behind it."""
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(100))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (noise(5, 6, 3), r"is uint8 \[5, 6, 3\]; it must be uint8 \[H, W, 2\]"),
        (noise(5, 6), r"is uint8 \[5, 6\]; it must be uint8"),
        (noise(5, 6, 2).astype(np.float32), r"is float32 \[5, 6, 2\]"),
        (noise(0, 6, 2), r"is uint8 \[0, 6, 2\]"),
        (np.array([{"a": 1}], dtype=object), r"is object \[1\]"),
        (b"not an array", "is not a NumPy array"),
        (
            b"\x93NUMPY\x01\x00\x10\x00{'descr': '|u1',\n",
            "is not a NumPy array, or its start is damaged",
        ),
        (b"", "is not a NumPy array"),
        ((10**6, 10**6, 2), "is damaged or truncated: 100 bytes for uint8"),
        ((7, 7, 2), r"is damaged or truncated: 100 bytes for uint8 \[7, 7, 2\]"),
    ],
)
def test_arrays_that_are_no_images_are_named(tmp_path, content, said):
    path = tmp_path / "a.npy"
    if isinstance(content, tuple):
        claiming(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(BadImage, match=f"{path} {said}"):
        decode_channels(path, channels=2)


def test_bounds_hold_for_arrays(tmp_path):
    np.save(tmp_path / "a.npy", noise(5, 60, 2))
    with pytest.raises(BadImage, match="is 60 x 5 pixels, but the policy moves images"):
        decode_channels(tmp_path / "a.npy", channels=2, least_side=6)
    with pytest.raises(BadImage, match="has 300 pixels, more than 299"):
        decode_channels(tmp_path / "a.npy", channels=2, max_pixels=299)


@pytest.mark.parametrize("workers", [0, 1])
def test_folders_lists_and_stores_of_arrays(arrays, tmp_path, workers):
    root, pixels = arrays
    parts = {
        split: [v for k, v in pixels.items() if k.startswith(split)] for split in ("train", "test")
    }
    lines = [f"{root / name},{name.split('/')[1]},{name.split('/')[0]}" for name in pixels]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *lines]))
    members = {name.replace("/", "-"): (root / name).read_bytes() for name in pixels}
    labels = {name.replace(".npy", ".cls"): str(int("sun" in name)).encode() for name in members}
    for split in ("train", "test"):
        both = sorted({**members, **labels}.items())
        write_tar(
            tmp_path / "tars" / f"{split}.tar", {n: c for n, c in both if n.startswith(split)}
        )
    (tmp_path / "tars" / "classnames.txt").write_text("fog\nsun\n")
    assert main(["pack", str(root), str(tmp_path / "store"), "--channels", "5", "--verify"]) == 0
    for source in (root, tmp_path / "list.csv", tmp_path / "tars", tmp_path / "store"):
        data = load_data("folder", source, channels=5)
        assert (data.classes, data.train.channels) == (("fog", "sun"), 5)
        for split, images in (("train", data.train), ("test", data.test)):
            found = all_images(images, workers=workers)
            assert all(map(np.array_equal, found, parts[split]))
            assert len(found) == 6
    with pytest.raises(
        ValueError,
        match="has images of C = 5 channels, but the model or --channels asks for 3; pack",
    ):
        load_data("folder", tmp_path / "store")


def test_arrays_are_no_images_of_a_color_folder(arrays):
    root, _ = arrays
    for name in ("fog", "sun"):
        Image.fromarray(noise(8, 8, 3)).save(root / "train" / name / "a.png")
    assert len(load_data("folder", root / "train").train) == 2


def test_packed_channels_are_shrunk_one_by_one(tmp_path):
    """Transparency does not blend into the colors, as Pillow would have it in RGBA."""
    (tmp_path / "in").mkdir()
    pixels = noise(40, 30, 4)
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    pack(tmp_path / "in", tmp_path / "store", size=15, channels=4, workers=0, progress=False)
    (found,) = all_images(read_store(tmp_path / "store").splits["train"])
    for channel in range(4):
        plane = Image.fromarray(np.ascontiguousarray(pixels[..., channel]))
        assert np.array_equal(found[..., channel], plane.resize((15, 20), Image.Resampling.BICUBIC))


def test_bad_arrays_can_be_left_out(arrays, tmp_path):
    root, _ = arrays
    np.save(root / "train" / "fog" / "0.npy", noise(9, 14, 4))
    data = load_data("folder", root, channels=5, skip_bad=True, workers=0, progress=False)
    assert len(data.train) == 5
    assert data.train.channels == 5
    assert "0.npy is uint8 [9, 14, 4]; it must be uint8 [H, W, 5]" in data.skipped[0]


def test_sets_in_memory_become_gray():
    color, gray = load_data("digits"), load_data("digits", channels=1)
    assert torch.equal(gray.train.images, color.train.images[..., :1])
    assert torch.equal(gray.test.labels, color.test.labels)
    assert gray.train_labeled is gray.train
    with pytest.raises(ValueError, match="images of digits can have 3 or, gray, 1"):
        load_data("digits", channels=4)


def test_luma_is_pillows():
    from amdim_fast.data.channels import as_gray

    images = torch.from_numpy(noise(300, 8, 8, 3))
    found = as_gray(TensorImages(images)).images
    for image, gray in zip(images[::50], found[::50], strict=True):
        expected = np.array(Image.fromarray(image.numpy()).convert("L"))
        assert np.array_equal(gray[..., 0].numpy(), expected)


def test_damaged_headers_are_bad_images(tmp_path):
    """NumPy parses them as Python, whose errors are of many types."""
    path = tmp_path / "a.npy"
    np.save(path, noise(4, 4, 2))
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    named = unchanged = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.integers(0, 128, generator.integers(1, 5)):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            found = decode_channels(path, channels=2)
        except BadImage as error:
            named += str(path) in str(error)
        else:
            unchanged += found.shape == (4, 4, 2)
    assert named + unchanged == 300
    assert named > 100


def test_arrays_without_channels_asked_for_are_named(arrays, tmp_path):
    root, _ = arrays
    for name in ("fog", "sun"):
        Image.fromarray(noise(8, 8, 3)).save(root / "train" / name / "a.png")
    said = describe_data(load_data("folder", root / "train"))
    assert "6 .npy files, which --channels other than 3 reads (fog/0.npy, fog/1.npy," in said
    (tmp_path / "list.txt").write_text(str(root / "train" / "fog" / "0.npy"))
    data = load_data("folder", tmp_path / "list.txt")
    with pytest.raises(BadImage, match="is a NumPy array; such files are read where --channels is"):
        data.train.batch(torch.tensor([0]))


def test_a_store_whose_channels_were_changed_is_refused(arrays, tmp_path):
    pack(arrays[0], tmp_path / "store", channels=5, workers=0, progress=False)
    path = tmp_path / "store" / "manifest.json"
    path.write_text(path.read_text().replace('"channels": 5', '"channels": 4'))
    with pytest.raises(
        ValueError, match=r"does not fit .* with images of 4 channels; pack the store"
    ):
        read_store(tmp_path / "store")
