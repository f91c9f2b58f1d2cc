"""Odd image files: the pixels Pillow and NumPy say, or one sentence naming the file."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from amdim_fast.data.decoding import BadImage, decode, pixels_of
from tests.data.image_files import picture


def saved(folder, image, name, **options):
    path = folder / name
    image.save(path, **options)
    return path


def pixels(path):
    image = decode(path)
    assert image.mode == "RGB"
    found = pixels_of(image)
    assert found.dtype == np.uint8
    return found


def test_color_is_kept(tmp_path):
    color = picture(0)
    np.testing.assert_array_equal(pixels(saved(tmp_path, Image.fromarray(color), "a.png")), color)


def test_jpeg_is_pillows(tmp_path):
    path = saved(tmp_path, Image.fromarray(picture(1)), "a.jpg", quality=90)
    with Image.open(path) as image:
        expected = np.asarray(image)
    np.testing.assert_array_equal(pixels(path), expected)
    assert np.abs(pixels(path).astype(int) - picture(1)).mean() < 8


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp"])
def test_grey_has_three_equal_channels(tmp_path, suffix):
    grey = picture(2, channels=1)[..., 0]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, Image.fromarray(grey), f"a.{suffix}", **options)
    found = pixels(path)
    assert (found == found[..., :1]).all()
    if suffix != "jpg":
        np.testing.assert_array_equal(found[..., 0], grey)


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255, 7])])
def test_palette_is_looked_up(tmp_path, transparency):
    index = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    colors = np.array([[255, 0, 0], [0, 250, 0], [10, 20, 30], [9, 9, 9]], dtype=np.uint8)
    image = Image.new("P", (4, 3))
    image.putdata(index.flatten().tolist())
    image.putpalette(colors.flatten().tolist())
    options = {} if transparency is None else {"transparency": transparency}
    path = saved(tmp_path, image, "a.png", **options)
    with Image.open(path) as again:
        assert again.mode == "P"
    np.testing.assert_array_equal(pixels(path), colors[index])


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped_not_blended(tmp_path, mode):
    layers = picture(3, channels=len(mode))
    layers[..., -1] = np.arange(layers[..., -1].size).reshape(layers.shape[:2]) % 256
    path = saved(tmp_path, Image.fromarray(layers), "a.png")
    expected = layers[..., :3] if mode == "RGBA" else layers[..., :1].repeat(3, -1)
    np.testing.assert_array_equal(pixels(path), expected)


def test_cmyk(tmp_path):
    ink = picture(4, channels=4)
    path = saved(tmp_path, Image.fromarray(ink, "CMYK"), "a.tiff")
    light = 255.0 - ink
    expected = light[..., :3] * light[..., 3:] / 255
    assert np.abs(pixels(path) - expected).max() <= 1
    jpeg = saved(tmp_path, Image.fromarray(ink, "CMYK"), "a.jpg", quality=95)
    assert np.abs(pixels(jpeg) - expected).mean() < 8


def grey_16_bit_png(values):
    """Written by hand, big-endian as the format has it, so that Pillow judges nothing here."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def test_16_bit_grey_is_scaled(tmp_path):
    values = np.arange(2**16).reshape(256, 256)
    (tmp_path / "a.png").write_bytes(grey_16_bit_png(values))
    found = pixels(tmp_path / "a.png")
    expected = np.rint(values * (255.0 / 65535.0)).astype(np.uint8)
    np.testing.assert_array_equal(found, expected[..., None].repeat(3, -1))


@pytest.mark.parametrize("suffix", ["pgm", "tiff"])
def test_16_bit_grey_of_other_formats(tmp_path, suffix):
    values = np.array([[0, 128, 129], [257, 40000, 65535]], dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 3 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    np.testing.assert_array_equal(pixels(path)[..., 0], [[0, 0, 1], [1, 156, 255]])


def test_values_beyond_16_bits_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.full((2, 2), 70000, np.int32)), "a.tiff")
    with pytest.raises(BadImage) as raised:
        decode(path)
    assert str(raised.value) == (
        f"{path} has pixels from 70000 to 70000, beyond 16 bits; save it with 8 or 16 bits"
    )
    path = saved(tmp_path, Image.fromarray(np.full((2, 2), 0.5, np.float32)), "b.tiff")
    with pytest.raises(BadImage) as raised:
        decode(path)
    assert str(raised.value) == (
        f"{path} has floating-point pixels, of unknown range; save it with 8 or 16 bits"
    )


def test_rotation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = saved(tmp_path, Image.fromarray(picture(5)), "plain.jpg")
    turned = saved(tmp_path, Image.fromarray(picture(5)), "turned.jpg", exif=exif)
    with Image.open(turned) as image:
        assert image.getexif()[0x0112] == 6
    np.testing.assert_array_equal(pixels(turned), pixels(plain))


def broken_files(folder):
    """{file: part of the sentence}."""
    whole = saved(folder, Image.fromarray(picture(6, 200, 300)), "whole.jpg").read_bytes()
    png = saved(folder, Image.fromarray(picture(6, 200, 300)), "whole.png").read_bytes()
    cases = {
        "cut.jpg": (whole[: len(whole) // 2], "is damaged or truncated (image file is truncated"),
        "cut.png": (png[: len(png) // 2], "is damaged or truncated"),
        "head.png": (
            png[:40],
            "is not an image (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP), or its start",
        ),
        "empty.jpg": (b"", "is empty"),
        "text.jpg": (b"not an image", "is not an image (BMP, GIF"),
        "start.jpg": (whole[:2], "is not an image (BMP, GIF"),
    }
    for name, (content, _) in cases.items():
        (folder / name).write_bytes(content)
    return {folder / name: sentence for name, (_, sentence) in cases.items()}


def test_broken_files_are_named_in_one_sentence(tmp_path):
    for path, sentence in broken_files(tmp_path).items():
        with pytest.raises(BadImage) as raised:
            decode(path)
        assert str(raised.value).startswith(f"{path} {sentence}")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_images_of_many_pixels(tmp_path, monkeypatch, suffix):
    """Pillow's guard, or the bound that is given, above it or below."""
    path = saved(tmp_path, Image.new("1", (300, 100)), f"a.{suffix}")
    said = f"{path} has 30,000 pixels, more than {{}}; allow them with --max-pixels 30000"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 14_000)
    with pytest.raises(BadImage) as raised:
        decode(path)
    assert str(raised.value) == said.format("28,000")
    assert decode(path, max_pixels=30_000).size == (300, 100)
    assert Image.MAX_IMAGE_PIXELS == 14_000
    with pytest.raises(BadImage) as raised:
        decode(path, max_pixels=29_999)
    assert str(raised.value) == said.format("29,999")
    assert Image.MAX_IMAGE_PIXELS == 14_000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    assert decode(path).size == (300, 100)


def test_images_of_short_sides(tmp_path):
    path = saved(tmp_path, Image.fromarray(picture(7, 4, 9)), "a.png")
    assert decode(path, least_side=4).size == (9, 4)
    with pytest.raises(BadImage) as raised:
        decode(path, least_side=5)
    assert str(raised.value) == (
        f"{path} is 9 x 4 pixels, but the policy moves images by up to 4 pixels: both sides must be"
        " 5 or more, or take another --policy"
    )


def test_absent_file_is_not_called_bad(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.jpg cannot be read \(No such file"):
        decode(tmp_path / "a.jpg")
    with pytest.raises(IsADirectoryError, match="cannot be read"):
        decode(tmp_path)
