"""The ahead-of-time check: committed rows are of these kernels, and a few compile here."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from amdim_fast.kernels import nce_tile_table
from amdim_fast.kernels.nce_tiles import TileSet

from amdim_fast.nce import tiles, triton_backend, triton_problem
from amdim_fast.nce.plan import PairingPlan
from amdim_fast.nce.torch_backend import Pairing
from tests.kernels import aot
from tests.nce.cases import features

ROOT = Path(__file__).resolve().parents[2]

# The interpreter of the other tests and the compiler exclude each other in one process.
SCRIPT = """
import json, sys
from benchmarks import sources
from tests.kernels import aot
request = json.loads(sys.argv[1])
chosen = [v for v in aot.variants() if (v.arch, v.dtype) in map(tuple, request["live"])]
wide = [v for v in chosen if not v.small or "over products" in v.name]
live = [aot.compile_variant(v) for v in wide if v.name in request["names"]]
expected = [[v.name, v.arch, v.dtype, v.arithmetic, v.small, list(v.tile)] for v in aot.variants()]
print(json.dumps({"live": live, "bad": [s for row in live for s in aot.violations(row)],
    "expected": expected, "source": sources.digest("aot")}))
"""
PLANS = ("forward", "recompute", "keep")
TORCH_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = (
    "nce_forward fused, shifted",
    "nce_forward fused, keeping, shifted",
    "nce_backward fused, shifted",
    "nce_forward fused, shifted, descriptors",
    "nce_backward fused, tanh, descriptors",
    "nce_forward over products, shifted",
    "nce_backward over products, shifted, same location",
)


def compiled(script, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def result():
    request = {"live": [["sm_90", "bf16"], ["sm_80", "fp16"], ["sm_100", "bf16"]], "names": NAMES}
    return compiled(SCRIPT, json.dumps(request))


@pytest.fixture(scope="module")
def rows():
    path = ROOT / "benchmarks" / "results" / "aot.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_some_kernels_compile_here_and_pass(result):
    assert len(result["live"]) > 10
    assert result["bad"] == []


def test_committed_rows_are_of_this_source_and_cover_every_variant(result, rows):
    hint = "run: python -m tests.kernels.aot"
    assert {row["source"] for row in rows} == {result["source"]}, hint
    found = []
    for row in rows:
        tile = dict(row["block_row"])
        small = tile.pop("small_width")
        key = [row[field] for field in ("name", "arch", "dtype", "arithmetic")]
        found.append([*key, small, list(tile.values())])
    assert sorted(map(str, found)) == sorted(map(str, result["expected"])), hint


def test_committed_rows_pass_and_planted_violations_do_not(rows):
    row = next(
        r for r in rows if r["name"] == NAMES[0] and (r["arch"], r["dtype"]) == ("sm_90", "bf16")
    )
    loads = next(r for r in rows if r["block_row"]["descriptors"])
    planted = [{"spills": 10_000}, {"shared_bytes": 10**6}, {"fp64": 1}, {"wgmma": 0}]
    script = (
        "import json, sys\nfrom tests.kernels import aot\n"
        "print(json.dumps([aot.violations(row) for row in json.load(open(sys.argv[1]))]))"
    )
    path = ROOT / "benchmarks" / "results" / "aot.jsonl"
    read = script.replace("json.load(open(sys.argv[1]))", "map(json.loads, open(sys.argv[1]))")
    assert not any(compiled(read, str(path)))
    caught = compiled(
        script.replace("json.load(open(sys.argv[1]))", "json.loads(sys.argv[1])"),
        json.dumps([*(row | change for change in planted), loads | {"tma": 0}]),
    )
    assert [len(sentences) for sentences in caught] == [1, 1, 1, 1, 1]


class Recorder:
    """Stands for a kernel and notes what it would be compiled for."""

    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    def __getitem__(self, grid):
        return lambda *_, **settings: self.seen.append((self.name, settings))


def compiled_for(name, constants, warps=4, stages=1):
    chosen = {"num_warps": warps, "num_stages": stages} if name != "nce_combine" else {}
    return name, *sorted((chosen | constants).items())


@pytest.mark.parametrize("descriptors", [False, True])
@pytest.mark.parametrize("row", nce_tile_table.TABLE, ids=str)
def test_every_launch_is_compiled_by_the_gate(monkeypatch, row, descriptors):
    """The launcher's own settings for every type, clip, plan, kind of negatives and width."""
    arch, arithmetic, _ = row
    tile_set = nce_tile_table.TABLE[row]
    if descriptors and arch in aot.DESCRIPTORS:
        fused = (t._replace(descriptors=True) for t in (tile_set.forward, tile_set.backward))
        read = tile_set.read_forward, tile_set.read_backward
        tile_set = TileSet(tile_set.fused, *fused, *read)
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set)
    monkeypatch.setattr(triton_problem, "arithmetic", lambda dtype: arithmetic)
    expected = {
        (v.dtype, *compiled_for(v.kernel, v.constants, v.tile.warps, v.tile.stages))
        for v in aot.variants((arch,))
    }
    seen = []
    for module, name in (
        (triton_backend.forward_kernels, "nce_forward"),
        (triton_backend.forward_kernels, "nce_combine"),
        (triton_backend.backward_kernels, "nce_backward"),
    ):
        monkeypatch.setattr(module, name, Recorder(name, seen))
    for dtype, clip, same_location, mode, width in itertools.product(
        aot.TYPES[arithmetic], (20.0, 100.0, None), (False, True), PLANS, (24, 33)
    ):
        src, trg = (t.detach().to(TORCH_TYPES[dtype]) for t in features(6, 4, width, sets=2))
        pairing = Pairing(src, trg, clip, same_location, PairingPlan(mode, 4, 0, 0))
        seen.clear()
        score, neg, _, kept = triton_backend.forward(pairing)
        triton_backend.backward(
            pairing, kept, score, neg, score, None, need_src=True, need_trg=True
        )
        assert {name for name, _ in seen} == {"nce_forward", "nce_combine", "nce_backward"}
        for name, settings in seen:
            of = "fp32" if name == "nce_combine" else dtype
            assert (of, *compiled_for(name, settings)) in expected, settings
