"""Tuning with an invented clock: what is tried, checked, chosen, shown and written."""

import json
from pathlib import Path

import pytest
import torch
from amdim_fast.kernels import nce_tile_table
from amdim_fast.kernels.nce_tiles import Tile

from amdim_fast.bench import autotune
from amdim_fast.bench.autotune import Case, tune
from amdim_fast.bench.candidates import (
    FIELDS,
    candidates_of,
    fused_tiles,
    read_tiles,
    shared_bytes,
)
from amdim_fast.nce import tile_file, tiles, triton_passes
from amdim_fast.nce.tile_file import VARIABLE, Key, read_file
from tests.nce.cases import DEVICE, TILE, tile_set

CASE = Case(5, 4, 24, torch.float32, DEVICE, repeats=2, warm_ups=0)
SLOW, FAST = TILE, TILE._replace(swizzle=4)
CHOICES = {field: [SLOW, FAST] for field in FIELDS}


# Pass of the kernels -> the tile that it takes.
PASSES = {
    "fused_statistics": "forward",
    "fused_gradients": "backward",
    "statistics": "read_forward",
    "gradients": "read_backward",
}


class Clock:
    """Milliseconds by the passes that run: 1 with FAST, 2 with others, 10 more over products."""

    def __init__(self, monkeypatch, elementwise=10.0):
        self.elementwise = elementwise
        for name, field in PASSES.items():
            monkeypatch.setattr(
                triton_passes, name, self.watched(field, getattr(triton_passes, name))
            )

    def watched(self, field, function):
        def wrapped(*arguments, **options):
            tile = getattr(tiles.choose(None, torch.float32, 24), field)
            self.now += (1.0 if tile == FAST else 2.0) + ("read" in field) * self.elementwise
            return function(*arguments, **options)

        return wrapped

    def measure(self, call):
        self.now = 0.0
        call()
        return self.now

    now = 0.0


@pytest.fixture
def recorded():
    return []


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """In the interpreter, sizes that still are no multiples of the tiles."""
    monkeypatch.setattr(autotune, "CHECKED_IMAGES", 18)
    monkeypatch.setattr(autotune, "CHECKED_LOCATIONS", 3)


@pytest.mark.parametrize("elementwise", [10.0, -0.5])
def test_the_fastest_of_each_kernel_wins(monkeypatch, recorded, elementwise):
    clock = Clock(monkeypatch, elementwise)
    before = tiles.choose
    best = tune(CASE, tile_set("fused"), CHOICES, clock.measure, lambda *row: recorded.append(row))
    assert best == tile_set("fused")._replace(fused=elementwise > 0, **dict.fromkeys(FIELDS, FAST))
    assert tiles.choose is before
    assert len(recorded) == 2 * len(FIELDS) + 2
    assert {len(times) for _, _, times in recorded} == {2}
    assert [times[0] for field, _, times in recorded if field == "forward"] == [2.0, 1.0]


def test_what_is_wrong_is_neither_timed_nor_chosen(monkeypatch, recorded, capsys):
    clock = Clock(monkeypatch)
    right = triton_passes.fused_gradients

    def wrong(*arguments):
        chosen = tiles.choose(None, torch.float32, 24)
        return right(*arguments) * (1.01 if chosen.backward == FAST else 1.0)

    monkeypatch.setattr(triton_passes, "fused_gradients", wrong)
    best = tune(CASE, tile_set("fused"), CHOICES, clock.measure, lambda *row: recorded.append(row))
    assert (best.forward, best.backward, best.read_backward) == (FAST, SLOW, FAST)
    assert len(recorded) == 2 * len(FIELDS) + 2 - 1
    assert "backward rows 16" in (printed := capsys.readouterr().out)
    assert "from the reference, 1e-04 allowed; left out" in printed


@pytest.mark.parametrize("one_pass", [False, True])
def test_gradients_of_one_pass_and_of_any_upstream_are_both_checked(monkeypatch, one_pass):
    features = autotune.make_features(CASE)
    expected = autotune.truth(features)
    read = tile_set("elementwise")
    assert autotune.fault(read, features, expected) is None
    right = triton_passes.gradients

    def wrong(*arguments, **options):
        grads, exponents = right(*arguments, **options)
        return grads * (1.01 if options["with_statistics"] == one_pass else 1.0), exponents

    monkeypatch.setattr(
        triton_passes,
        "gradients",
        lambda *a, with_statistics=False, **o: wrong(*a, with_statistics=with_statistics, **o),
    )
    assert "from the reference" in autotune.fault(read, features, expected)


def test_nothing_right_is_an_error(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(autotune, "fault", lambda *_: "is wrong")
    with pytest.raises(RuntimeError, match="no candidate for forward gives right results"):
        tune(CASE, tile_set("fused"), CHOICES, clock.measure, print)


def test_candidates_fit_the_gpu():
    for capability, limit in (((8, 0), 163), ((8, 9), 99), ((9, 0), 227), ((12, 0), 99)):
        for dtype in (torch.bfloat16, torch.float32):
            start = nce_tile_table.built_in(capability, dtype, 2048)
            found = candidates_of(dtype, capability, start)
            for field, tried in found.items():
                assert tried[0] == getattr(start, field)
                assert 3 < len(tried) == len(set(tried)) < 100
                assert all(shared_bytes(t, dtype.itemsize) <= limit * 1024 for t in tried[1:])
                wanted = {t.descriptors for t in tried if t.width}
                assert wanted <= ({True, False} if capability >= (9, 0) else {False})


def test_small_shared_memory_leaves_tiles_out():
    many, few = (fused_tiles(2, (9, 0), limit) for limit in (227 * 1024, 48 * 1024))
    assert set(few) < set(many)
    assert fused_tiles(2, (9, 0), 1024) == []


def test_compiled_kernels_take_no_more_shared_memory_than_is_filtered_by():
    """The rows of the ahead-of-time gate are the independent truth; barriers take some bytes."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "aot.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fused = [row for row in rows if "fused" in row["name"] and row["arithmetic"] != "ieee"]
    assert len(fused) > 100
    for row in fused:
        tile = Tile(*(row["block_row"][field] for field in tile_file.TILE_FIELDS))
        itemsize = 4 if row["dtype"] == "fp32" else 2
        assert row["shared_bytes"] <= shared_bytes(tile, itemsize) + 256


def test_read_tiles_multiply_nothing_and_differ_in_what_matters():
    tried = read_tiles()
    assert {(tile.rows, tile.width) for tile in tried} == {(1, 0)}
    assert len({(tile.columns, tile.warps) for tile in tried}) == len(tried) == 12


@pytest.fixture
def gpu(monkeypatch):
    """The parts of torch that ask for a GPU, answered as an H200 would."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(autotune, "device_name", lambda _: "some GPU")
    monkeypatch.setattr(autotune, "stopwatch", lambda _: None)


def test_the_row_is_written_and_taken(monkeypatch, tmp_path, gpu, capsys):
    file = tmp_path / "tiles.json"
    read = TILE._replace(width=0)
    found = tile_set("descriptors")._replace(read_forward=read, read_backward=read)

    def tuned(case, start, candidates, measure, record):
        assert (case.images, case.width, case.dtype) == (64, 512, torch.float16)
        record("forward", "some tile", [1.0, 3.0, 2.0])
        return found

    monkeypatch.setattr(autotune, "tune", tuned)
    arguments = ["--dtype", "float16", "--width", "512", "--images", "64"]
    assert autotune.main([*arguments, "--file", str(file)]) == 0
    ((key, (written, note)),) = read_file(file).items()
    assert (key, written) == (Key("sm_90", "half", True), found)
    assert note["device"] == "some GPU"
    assert (note["B"], note["L"], note["D"]) == (64, 49, 512)
    printed = capsys.readouterr().out
    assert "  forward some tile: 2.000 ms\n" in printed
    assert f"export {VARIABLE}={file}" in printed
    monkeypatch.setenv(VARIABLE, str(file))
    tile_file._read_once.cache_clear()
    assert tiles.choose((9, 0), torch.bfloat16, 128) == found


def test_obstacles_are_one_sentence(monkeypatch, tmp_path, capsys, request):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert autotune.main(["--file", "x.json"]) == 2
    assert "torch finds no CUDA device here" in capsys.readouterr().err
    request.getfixturevalue("gpu")
    assert autotune.main([]) == 2
    assert "give --file or set AMDIM_FAST_BLOCKS" in capsys.readouterr().err
    bad = tmp_path / "blocks.json"
    bad.write_text("[]]")
    monkeypatch.setenv(VARIABLE, str(bad))
    assert autotune.main([]) == 2
    printed = capsys.readouterr().err
    assert "is not JSON" in printed
    assert printed.count("\n") == 1
