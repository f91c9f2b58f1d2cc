"""``amdim-fast views`` and the sheets it writes."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from amdim_fast import augment, sample_view_params
from amdim_fast.cli.main import main
from amdim_fast.views.params import POLICIES
from amdim_fast.views.sheets import GAP, sheet
from tests.data.image_files import picture
from tests.processes import run

SIZES = ((20, 30), (50, 40))


@pytest.fixture
def files(tmp_path):
    """Two image files of different sizes and their pixels."""
    pixels = [picture(seed, *size) for seed, size in enumerate(SIZES)]
    paths = [tmp_path / f"{number}.png" for number in range(len(SIZES))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return [str(path) for path in paths], pixels


def tiles_of(path, size):
    """[row, column] to the pixels of a tile, cut out of the file by slices."""
    pixels = np.array(Image.open(path))
    step = size + 2 * GAP
    return lambda row, column: pixels[
        row * step + GAP : row * step + GAP + size, column * step + GAP : column * step + GAP + size
    ]


def normalized(pixels, policy):
    plain = torch.from_numpy(pixels).float().div(255)
    return plain.sub(torch.tensor(policy.mean)).div(torch.tensor(policy.std)).permute(2, 0, 1)


@pytest.mark.parametrize("name", POLICIES)
def test_tiles_are_what_augment_makes(files, tmp_path, name):
    paths, pixels = files
    policy = POLICIES[name]
    out = tmp_path / "sheet.png"
    flags = [f"--policy={name}", "--views=3", "--seed=7", f"--out={out}"]
    assert main(["views", *paths, *flags]) == 0
    params = sample_view_params(policy, SIZES, views=3, generator=torch.Generator().manual_seed(7))
    images = [torch.from_numpy(image) for image in pixels]
    expected = augment(images, params, size=policy.size, mean=policy.mean, std=policy.std)
    tile = tiles_of(out, policy.size)
    for row in range(2):
        for view in range(3):
            found = normalized(tile(row, view + 1), policy)
            assert torch.equal(found, expected[view, row])
    assert not np.array_equal(tile(0, 1), tile(0, 2))
    whole = ImageOps.contain(
        Image.fromarray(pixels[1]), (policy.size,) * 2, Image.Resampling.BICUBIC
    )
    left = (policy.size - whole.width) / 2
    shown = tile(1, 0)[:, round(left) : round(left) + whole.width]
    np.testing.assert_array_equal(shown, np.array(whole))


def test_as_a_process(files, tmp_path):
    paths, _ = files
    command = ["-m", "amdim_fast", "views", *paths, "--policy=digits"]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote views.png: 2 images, 4 views of each" in done.stdout
    with Image.open(tmp_path / "views.png") as image:
        assert image.size == (5 * (32 + 2 * GAP), 2 * (32 + 2 * GAP))
    before = (tmp_path / "views.png").read_bytes()
    refused = run(command, tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == (
        "amdim-fast: views.png exists already; choose another name or allow --overwrite\n"
    )
    assert (tmp_path / "views.png").read_bytes() == before
    command += ["--overwrite", "--seed=1"]
    assert run(command, tmp_path).returncode == 0
    assert (tmp_path / "views.png").read_bytes() != before


def test_bad_input_is_one_sentence_and_writes_nothing(files, tmp_path, capsys):
    paths, _ = files
    (tmp_path / "empty.png").write_bytes(b"")
    small = tmp_path / "small.png"
    Image.fromarray(picture(0, 4, 4)).save(small)
    out = tmp_path / "sheet.png"
    cases = [
        ([str(tmp_path / "empty.png")], "empty.png is empty"),
        ([str(tmp_path / "none.png")], "none.png cannot be read"),
        ([*paths, "--views=0"], "views is 0; it must be a whole number from 1 to 1000"),
        ([*paths, f"--views={10**20}"], f"views is {10**20}; it must be a whole number from 1 to"),
        (
            [str(small), "--policy=cifar"],
            f"{small} is 4 x 4 pixels, but the policy moves images by up to 4 pixels: both sides",
        ),
        ([*paths, "--max-pixels=700"], "1.png has 2,000 pixels, more than 700"),
        ([*paths, f"--out={tmp_path}"], "is a folder; it must be the name of a file"),
        ([*paths, f"--out={tmp_path / 'no' / 'x.png'}"], "is not a folder; create it"),
    ]
    for arguments, message in cases:
        given = [] if any("--out" in argument for argument in arguments) else [f"--out={out}"]
        assert main(["views", *arguments, *given]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()


def test_sheet_puts_tiles_in_their_places():
    tiles = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 5, 5, 3)
    edges = torch.full((2, 3, 3), 9, dtype=torch.uint8)
    made = sheet(tiles.view(2, 3, 5, 5, 3), edges)
    step = 5 + 2 * GAP
    assert made.shape == (2 * step, 3 * step, 3)
    for number in range(6):
        row, column = divmod(number, 3)
        cell = made[row * step : (row + 1) * step, column * step : (column + 1) * step]
        assert (cell[GAP:-GAP, GAP:-GAP] == number).all()
        assert (cell[:GAP] == 9).all()
        assert (cell[:, -GAP:] == 9).all()


@pytest.mark.parametrize(("height", "width"), [(500, 1), (1, 500), (3, 4000)])
def test_thin_images_are_drawn(tmp_path, height, width):
    """A line of the tile's length, one pixel wide, in its middle."""
    path, out = tmp_path / "thin.png", tmp_path / "sheet.png"
    Image.new("RGB", (width, height), (200, 30, 40)).save(path)
    assert main(["views", str(path), "--policy=digits", "--views=2", f"--out={out}"]) == 0
    shown = tiles_of(out, 32)(0, 0)
    is_color = (shown == (200, 30, 40)).all(-1)
    assert is_color.sum() == 32
    lines = is_color.all(0) if height > width else is_color.all(1)
    assert lines.nonzero()[0].tolist() in ([15], [16])
    assert (shown[~is_color] == 255).all()
