"""What of the GPU suite can be decided without one: the grid's table, the parts, the search."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amdim_fast.bench.inputs import make_inputs
from amdim_fast.bench.measure import largest_difference, stopwatch
from amdim_fast.training.recipes import RECIPES
from benchmarks import bench_large_batch, gpu, harness
from benchmarks.gpu import grid, large
from benchmarks.nce_providers import FORWARD, FORWARD_BACKWARD, LOSSES, run
from benchmarks.report.rows import Rows
from benchmarks.report.tables import nce_grid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("mode", [FORWARD, FORWARD_BACKWARD])
def test_kernels_agree_with_the_reference(mode):
    inputs = make_inputs(5, 16, DEVICE)
    found, expected = run("triton", mode, inputs), run("reference", mode, inputs)
    assert largest_difference(found, expected) < 1e-4


def test_every_point_of_the_grid_has_known_providers():
    for dtype in grid.DTYPES:
        for images, width in grid.GRID:
            measured = grid.providers(images, width, dtype)
            assert {*measured} <= LOSSES.keys() | {"gemms"}
            assert {*measured} >= {"triton", "gemms"}


def test_product_flops_count_every_pair():
    images, width = 7, 3
    pairs = 2 * images * images * (25 + 49 + 25)
    assert grid.product_flops(images, width, FORWARD) == 2 * pairs * width
    assert grid.product_flops(images, width, FORWARD_BACKWARD) == 6 * pairs * width


def row(case, provider, mode, metric, unit, value):
    condition = harness.Condition("nce", case, provider, mode, {"B": 1024}, "bfloat16")
    return harness.make_row(condition, metric, unit, [value], device="some GPU")


def test_table_divides_by_the_measured_peak():
    key = grid.grid_key(1024, 2048, "bfloat16")
    seconds = grid.product_flops(1024, 2048, FORWARD_BACKWARD) / 400e12
    rows = [
        row(key, "triton", FORWARD_BACKWARD, "time", "ms", 1e3 * seconds),
        row(grid.peak_key("bfloat16"), "product_peak", "product", "rate", "TFLOP/s", 800.0),
    ]
    text = nce_grid(Rows(rows))
    assert "| amdim_fast, bfloat16 | 1024 | 2048 | not yet measured |" in text
    assert "| 400 | 50% | not yet measured |" in text
    assert nce_grid(Rows([])) == "Not yet measured."


def test_test_files_that_need_a_missing_package_are_left_out(monkeypatch, capsys):
    assert gpu.lacking() == {}
    found = gpu.importlib.util.find_spec
    missing = {"PIL", "xdist"}
    monkeypatch.setattr(
        gpu.importlib.util, "find_spec", lambda name: None if name in missing else found(name)
    )
    left_out = gpu.lacking()
    assert set(map(tuple, left_out.values())) == {("PIL",)}
    assert "tests/views/test_sheets.py" in left_out
    assert "tests/nce/test_gpu.py" not in left_out
    command = gpu._tests()
    assert "-n" not in command
    assert {f"--ignore={file}" for file in left_out} <= set(command)
    assert "left out: tests/views/test_sheets.py; not installed: PIL\n" in capsys.readouterr().out


def test_packages_of_helpers_count(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    (tmp_path / "tests" / "data").mkdir(parents=True)
    (tmp_path / "tests" / "data" / "helper.py").write_text("def f():\n    import PIL.Image\n")
    for line in ("from tests.data import helper", "import tests.data.helper"):
        path = tmp_path / "tests" / "test_one.py"
        path.write_text(f"import torch.nn\nfrom os import path\n{line}\n")
        assert gpu.imported(path) >= {"torch", "os", "PIL"}


def test_every_test_that_needs_a_gpu_is_in_the_suite():
    needing = {
        str(path.parent.relative_to(gpu.ROOT))
        for path in (gpu.ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    assert needing <= set(gpu.FOLDERS)
    for test in gpu.SANITIZED:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (gpu.ROOT / file).read_text(encoding="utf-8")


def test_without_a_gpu_nothing_is_run(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert grid.main(["peak"]) == 1
    assert bench_large_batch.main(["--device", "cuda"]) == 1
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_a_failing_part_does_not_stop_the_next(monkeypatch, capfd):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    parts = {
        "bad": (20, lambda: gpu._python("-c", "raise SystemExit(3)")),
        "slow": (1, lambda: gpu._python("-c", "import time; time.sleep(30)")),
        "good": (20, lambda: gpu._python("-c", "print('ran')")),
        "absent": (20, lambda: None),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--parts", *parts]) == 1
    printed = capfd.readouterr().out
    assert "FAILED: exit status 3" in printed
    assert "FAILED: over its 1 s" in printed
    assert "ran" in printed
    assert "left out" in printed


@pytest.mark.parametrize("limit", [127, 128, 200, 1000, 4096])
def test_search_ends_within_a_sixteenth_of_what_fits(limit):
    tried = []

    def attempt(images):
        tried.append(images)
        return 1.0 if images <= limit else None

    found = large.search(attempt, 1e6)
    if limit < 128:
        assert found == (large.Found(0, 0.0, "128 did not fit"))
        return
    assert found.images in tried
    assert limit * 15 / 17 <= found.images <= limit
    assert found.note == ""
    assert len(tried) < 12


def test_search_stops_before_an_attempt_that_would_take_too_long():
    now = [0.0]

    def attempt(images):
        now[0] += (images / 128) ** 2
        return 1e3 * (images / 128) ** 2

    found = large.search(attempt, 30.0, lambda: now[0])
    assert found.images == 512
    assert now[0] == 21
    assert "out of time" in found.note


def test_large_step_and_loss_run_on_any_device(monkeypatch):
    recipe = replace(RECIPES["imagenet128"], ndf=2, n_rkhs=16, depth=1)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self.to(DEVICE))
    for provider in large.PROVIDERS:
        training = large.make_training(recipe, provider)
        for measured in (large.step, large.loss_alone):
            assert measured(training, 4, stopwatch("cpu")) > 0
