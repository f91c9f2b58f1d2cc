"""EXIF orientation is ignored, and said."""

import pytest
from PIL import Image

from amdim_fast.cli.main import main
from amdim_fast.data.datasets import describe_data, load_data
from amdim_fast.data.orientation import said_orientation
from tests.data.image_files import picture


def write(folder, turned, upright, suffix="jpg"):
    """Files of which the first ones have an orientation; some of the others say 1."""
    folder.mkdir(parents=True)
    for number in range(turned + upright):
        exif = Image.Exif()
        if number < turned:
            exif[0x0112] = 2 + number % 7
        elif number % 2:
            exif[0x0112] = 1
        Image.fromarray(picture(number)).save(folder / f"{number:03d}.{suffix}", exif=exif)


SAID = (
    "of {} files looked at, {} have an EXIF orientation, which is ignored: turn their pixels first,"
    " with Pillow's ImageOps.exif_transpose, if they shall be upright"
)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_turned_files_are_counted(tmp_path, suffix):
    write(tmp_path / "some", 7, 4, suffix)
    line = describe_data(load_data("folder", tmp_path / "some"))
    assert line == f"data: 11 training images without labels; no test images; {SAID.format(11, 7)}"
    write(tmp_path / "none", 0, 3, suffix)
    (tmp_path / "none" / "bad.jpg").write_bytes(b"no image")
    line = describe_data(load_data("folder", tmp_path / "none"))
    assert line == "data: 4 training images without labels; no test images"


def test_files_that_pillow_turns_are_not_counted(tmp_path):
    write(tmp_path / "tiff", 3, 0, "tiff")
    assert "EXIF" not in describe_data(load_data("folder", tmp_path / "tiff"))


def test_many_files_are_sampled_evenly(tmp_path):
    """The first of 640 files and every tenth from there; of these, 5 of the 50 turned ones."""
    turned, upright = tmp_path / "a" / "000.jpg", tmp_path / "a" / "001.jpg"
    write(tmp_path / "a", 1, 1)
    asked = []

    def path(index):
        asked.append(index)
        return turned if index < 50 else upright

    assert said_orientation(path, 640) == SAID.format(64, 5)
    assert asked == list(range(0, 640, 10))
    assert said_orientation(path, 0) == ""


def test_pack_says_it(tmp_path, capsys):
    write(tmp_path / "images", 2, 1)
    assert main(["pack", str(tmp_path / "images"), str(tmp_path / "store"), "--workers=0"]) == 0
    assert SAID.format(3, 2) in capsys.readouterr().err.splitlines()
