"""Cached launches hand the launcher what ``kernel[grid]`` does, on a driver that records them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from amdim_fast.kernels import launch as launch_module
from amdim_fast.kernels.launch import launch

from tests.kernels import launch_cases
from tests.kernels.launch_cases import MUTANTS, PREPARED_MUTANTS, mixed

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Functions of Python that a cached launch calls; torch's own get_current_device makes two more.
CALLED = ["launch", "_is_direct", "active", "get_current_device", "_key", "get_current_stream"]


@pytest.fixture(scope="module")
def report():
    if not launch_module.IS_CHECKED:
        pytest.skip(f"Triton {triton.__version__} is unchecked: every launch is kernel[grid]")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", launch_cases.__name__],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_launcher_gets_what_kernel_grid_hands_over(report):
    assert [row for row in report["cases"] if not row[2]] == []


def test_only_new_specializations_are_slow(report):
    expected = {None: [True, True], True: [True, False], False: [False, False]}
    assert [row for row in report["cases"] if row[3] != expected[row[1]]] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_errors_are_caught(report, name):
    assert not all(same for _, _, same, _ in report["mutants"][name])


def test_hooks_and_knobs_take_the_slow_way(report):
    watched = report["watched"]
    assert watched.pop("calls") == 1  # of the hook before JITFunction.run; launchers call the rest
    assert list(watched.values()) == [[False, True, False]] * 7


def test_other_versions_and_wrapped_kernels_take_the_slow_way(report):
    slow = {"3.5.1", "3.10.0", "4.0.0"}
    assert report["versions"] == {version: version in slow for version in report["versions"]}
    assert report["wrapped"] == [True, True]


def test_a_prepared_launch_hands_over_the_same(report):
    assert [row for row in report["prepared"] if not row[1]] == []
    assert {tuple(row[2]) for row in report["prepared"]} <= {(True, False), (False, False)}


@pytest.mark.parametrize("name", PREPARED_MUTANTS)
def test_planted_errors_of_a_prepared_launch_are_caught(report, name):
    assert not all(same for _, same, _ in report["prepared mutants"][name])


def test_python_functions_of_a_cached_launch(report):
    assert report["called"] == [*CALLED, "__call__"]


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_launch_computes(offset):
    """In the interpreter, or on the GPU."""
    for scale in (1.5, 2.5):
        out = torch.zeros(64, device=DEVICE)
        weight = torch.ones(64, device=DEVICE)
        launch(mixed, (1,), out[offset:], weight, 9, 7, 0, scale, block=16, shift=2)
        expected = torch.zeros(64, device=DEVICE)
        expected[offset : offset + 7] = torch.arange(7, device=DEVICE) * scale + 9 + 7 + 2 + 1
        assert torch.equal(out, expected)


@pytest.mark.gpu
def test_launch_follows_the_stream_and_is_captured():
    out = torch.zeros(64, device=DEVICE)
    column = torch.arange(7, device=DEVICE)
    call = (mixed, (1,), out, None, 9, 7, 0)
    launch(*call, 1.0, block=16)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(500_000_000)
        launch(*call, 2.0, block=16)
    before = out.clone()
    torch.cuda.synchronize()
    assert torch.equal(before[:7], column * 1.0 + 19)
    assert torch.equal(out[:7], column * 2.0 + 19)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(*call, 3.0, block=16)
    assert torch.equal(out[:7], column * 2.0 + 19)
    graph.replay()
    assert torch.equal(out[:7], column * 3.0 + 19)
