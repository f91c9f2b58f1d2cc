"""What of the GPU benchmarks can be decided without one: providers, the grid's table, the parts."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amdim_fast import last_plan
from amdim_fast.nce import tiles
from amdim_fast.training.recipes import RECIPES
from benchmarks import bench_large_batch, gpu, harness, large_cuda, nce_grid
from benchmarks.grid_table import grid_table
from benchmarks.nce_providers import FORCED, FORWARD, FORWARD_BACKWARD, LOSSES, make_inputs, run
from benchmarks.rows import Rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("mode", [FORWARD, FORWARD_BACKWARD])
@pytest.mark.parametrize("provider", ["triton", *FORCED])
def test_kernel_providers_agree_with_the_reference(provider, mode):
    inputs = make_inputs(5, 16, "float32", DEVICE)
    found, expected = run(provider, mode, inputs), run("reference", mode, inputs)
    assert harness.largest_difference(found, expected) < 1e-4
    way = {"triton_fused": "pointers", "triton_descriptors": "descriptors"}.get(
        provider, "products"
    )
    if provider in FORCED:
        assert all(f"forward through {way}" in text for text in last_plan().kernels)


def test_forced_choice_ends_with_the_call():
    before = tiles.choose
    run("triton_fused", FORWARD, make_inputs(4, 16, "float32", DEVICE))
    assert tiles.choose is before


def test_every_point_of_the_grid_has_known_providers():
    for dtype in nce_grid.DTYPES:
        for images, width in nce_grid.GRID:
            measured = nce_grid.providers(images, width, dtype)
            assert {*measured} <= LOSSES.keys() | {"gemms"}
            assert {*measured} >= {"triton", "gemms"}


def test_product_flops_count_every_pair():
    images, width = 7, 3
    pairs = 2 * images * images * (25 + 49 + 25)
    assert nce_grid.product_flops(images, width, (25, 49), FORWARD) == 2 * pairs * width
    assert nce_grid.product_flops(images, width, (25, 49), FORWARD_BACKWARD) == 6 * pairs * width


def row(case, provider, mode, metric, unit, value):
    condition = harness.Condition("nce", case, provider, mode, {"B": 1024}, "bfloat16")
    return harness.make_row(condition, metric, unit, [value], device="some GPU")


def test_table_divides_by_the_measured_peak():
    key = nce_grid.grid_key(1024, 2048, "bfloat16")
    seconds = nce_grid.product_flops(1024, 2048, (25, 49), FORWARD_BACKWARD) / 400e12
    rows = [
        row(key, "triton", FORWARD_BACKWARD, "time", "ms", 1e3 * seconds),
        row(nce_grid.peak_key("bfloat16"), "product_peak", "product", "rate", "TFLOP/s", 800.0),
    ]
    text = grid_table(Rows(rows))
    assert "| amdim_fast, bfloat16 | 1024 | 2048 | not yet measured |" in text
    assert "| 400 | 50% | not yet measured |" in text
    assert grid_table(Rows([])) == "Not yet measured."


def imported(path):
    """Packages that a test file imports at its head, by way of other files of tests too."""
    found = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            found |= {alias.name.split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            found.add(statement.module.split(".")[0])
    files = [path.parent / f"{name}.py" for name in found]
    return found.union(*(imported(file) for file in files if file.exists()))


def test_files_that_import_what_a_gpu_machine_may_lack_are_known():
    for path in Path(__file__).parent.glob("test_*.py"):
        for package in imported(path) & gpu.NEEDS.keys():
            listed = gpu.NEEDS[package] + (gpu.NEEDS["torchvision"] if package == "PIL" else ())
            assert f"tests/{path.name}" in listed, (path.name, package)
    for file in {file for files in gpu.NEEDS.values() for file in files}:
        assert (Path(__file__).parents[1] / file).exists(), file


def test_without_a_gpu_nothing_is_run(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert nce_grid.main(["peak"]) == 1
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

    found = large_cuda.search(attempt, 128, 1e6)
    if limit < 128:
        assert found == (large_cuda.Found(0, 0.0, "128 did not fit"))
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

    found = large_cuda.search(attempt, 128, 30.0, lambda: now[0])
    assert found.images == 512
    assert now[0] == 21
    assert "out of time" in found.note


def test_large_step_and_loss_run_on_any_device(monkeypatch):
    recipe = replace(RECIPES["imagenet128"], ndf=2, n_rkhs=16, depth=1)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self.to(DEVICE))
    for provider in large_cuda.PROVIDERS:
        training = large_cuda.make_training(recipe, provider)
        for measured in (large_cuda.step, large_cuda.loss_alone):
            assert measured(training, 4, harness.stopwatch("cpu")) > 0
