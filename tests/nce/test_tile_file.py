"""Measured rows of the tile table: the file, its faults, and that they precede built-in rows."""

import json

import pytest
import torch
from amdim_fast.kernels import nce_tile_table
from amdim_fast.kernels.nce_tiles import Tile, TileSet

from amdim_fast.nce import tile_file, tiles
from amdim_fast.nce.tile_file import VARIABLE, Key, read_file, write_row

KEY = Key("sm_90", "half", False)
TILE = Tile(64, 128, 32, 8, 4, 3, descriptors=True)
TILES = TileSet(
    True, TILE, TILE._replace(stages=4), Tile(8, 256, 0, 8, 4, 1), Tile(4, 512, 0, 8, 8, 1)
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "blocks.json"


@pytest.fixture
def in_use(path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(path))
    tile_file._read_once.cache_clear()
    yield path
    tile_file._read_once.cache_clear()


def test_rows_come_back_as_they_were_written(path):
    other = Key("sm_86", "ieee", True)
    write_row(path, KEY, TILES._replace(fused=False), "first")
    write_row(path, other, TILES, None)
    write_row(path, KEY, TILES, {"device": "a GPU"})
    assert read_file(path) == {KEY: (TILES, {"device": "a GPU"}), other: (TILES, None)}
    assert [file.name for file in path.parent.iterdir()] == ["blocks.json"]


def test_the_file_calls_the_swizzle_group(path):
    write_row(path, KEY, TILES, None)
    (row,) = json.loads(path.read_text())
    assert row["forward"] == {
        **{"rows": 64, "columns": 128, "width": 32, "group": 8},
        **{"warps": 4, "stages": 3, "descriptors": True},
    }


def test_a_measured_row_comes_first_and_only_for_its_key(in_use):
    write_row(in_use, KEY, TILES, None)
    assert tiles.choose((9, 0), torch.bfloat16, 2048) == TILES
    for capability, dtype, width in (
        ((9, 0), torch.bfloat16, 512),
        ((9, 0), torch.float32, 2048),
        ((10, 0), torch.bfloat16, 2048),
        ((8, 6), torch.bfloat16, 2048),
        (None, torch.bfloat16, 2048),
    ):
        built_in = nce_tile_table.built_in(capability, dtype, width)
        assert tiles.choose(capability, dtype, width) == built_in != TILES


def test_architectures_without_rows_of_their_own_may_have_measured_ones(in_use):
    write_row(in_use, Key("sm_86", "half", True), TILES, None)
    assert tiles.choose((8, 6), torch.float16, 64) == TILES
    assert tiles.choose((8, 9), torch.float16, 64) == nce_tile_table.TABLE["default", "half", True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ({}, "holds a dict; it must be a list of rows"),
        ([3], "row 0 of .* is a int; it must be an object"),
        ({"fused": 1}, "fused in row 0 of .* is 1; it must be true or false"),
        ({"small_width": None}, "small_width in row 0 of .* is None; it must be true or false"),
        ({"architecture": 90}, "architecture in row 0 of .* is 90; it must be sm_<number>"),
        (
            {"arithmetic": "int8"},
            "arithmetic in row 0 of .* is 'int8'; it must be one of half, tf32",
        ),
        ({"speed": 1}, "row 0 of .* has an unknown field speed; its fields are"),
        ({"forward": None}, "forward in row 0 of .* is a NoneType; it must be an object"),
        (
            {"forward.rows": 48},
            "rows of forward in row 0 .* is 48; it must be a power of two from 16",
        ),
        (
            {"forward.rows": True},
            "rows of forward in row 0 of .* is True; it must be a power of two",
        ),
        (
            {"backward.columns": 512},
            "columns of backward in row 0 of .* is 512; it must be a power",
        ),
        (
            {"backward.stages": "3"},
            "stages of backward in row 0 of .* is '3'; it must be a whole number from 1 to 8",
        ),
        ({"read_forward.width": 32}, "width of read_forward in row 0 of .* is 32; it must be 0"),
        (
            {"forward.descriptors": "no"},
            "descriptors of forward in row 0 of .* is 'no'; it must be",
        ),
    ],
)
def test_faults_are_named(in_use, change, message):
    write_row(in_use, KEY, TILES, None)
    if isinstance(change, dict) and change:
        rows = json.loads(in_use.read_text())
        ((name, value),) = change.items()
        field, _, part = name.partition(".")
        if part:
            rows[0][field][part] = value
        else:
            rows[0][field] = value
        change = rows
    in_use.write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(ValueError, match=message) as caught:
        tiles.choose((9, 0), torch.bfloat16, 2048)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(VARIABLE)


def test_missing_field_and_missing_file(in_use):
    with pytest.raises(ValueError, match=r"blocks\.json cannot be read \(No such file"):
        tiles.choose((9, 0), torch.bfloat16, 2048)
    write_row(in_use, KEY, TILES, None)
    rows = json.loads(in_use.read_text())
    del rows[0]["forward"]["warps"]
    in_use.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"forward in row 0 of .* has no warps; its fields"):
        tiles.choose((9, 0), torch.bfloat16, 2048)


def test_a_faulty_file_is_not_overwritten(path):
    path.parent.mkdir()
    path.write_text("[1]")
    with pytest.raises(ValueError, match="row 0 of"):
        write_row(path, KEY, TILES, None)
    assert path.read_text() == "[1]"


def test_every_built_in_row_could_be_in_a_file(path):
    for (architecture, arithmetic, small), tile_set in nce_tile_table.TABLE.items():
        architecture = "sm_1" if architecture == "default" else architecture
        write_row(path, Key(architecture, arithmetic, small), tile_set, None)
    assert len(read_file(path)) == len(nce_tile_table.TABLE)
