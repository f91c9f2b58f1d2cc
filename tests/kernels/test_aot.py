"""The ahead-of-time check: committed rows are of these kernels, and a few compile here."""

import itertools
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from amdim_fast.kernels import nce_tile_table

from amdim_fast import LossMultiNCE, nce_log_prob, nce_loss, nce_objective
from amdim_fast.nce import triton_fused, triton_passes
from amdim_fast.nce.inputs import NEGATIVES
from tests.kernels import aot, compilations, pairwise
from tests.kernels.cases import plan_all
from tests.nce.cases import DEVICE

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "benchmarks" / "results" / "aot.jsonl"
BARRIER = "            tl.debug_barrier()\n"
# The interpreter of the other tests and the compiler exclude each other in one process.
SCRIPT = """
import importlib.util, json, sys
from benchmarks import sources
from tests.kernels import aot
bare = importlib.util.spec_from_file_location("bare", sys.argv[1])
module = importlib.util.module_from_spec(bare)
bare.loader.exec_module(module)
found = aot.variants()
firsts = {}
for v in found:
    if v.fused and v.arithmetic == "half" and not v.measured and v.arch != "default":
        firsts.setdefault((v.arch, v.of.kernel, v.tile.descriptors), v)
rows = [v for v in found if v.of.kernel == "nce_rows" and v.arch == "sm_90"]
with_gradients = {}
for v in rows:
    if v.settings["GRADIENTS"]:
        with_gradients.setdefault((v.dtype, v.settings["SAME_LOCATION"]), v)
live = [aot.compile_variant(v) for v in [*firsts.values(), *rows]]
print(json.dumps({
    "live": live,
    "bad": [s for row in live for s in aot.violations(row)],
    "bare": [aot.violations(aot.compile_variant(v, [module])) for v in with_gradients.values()],
    "expected": [[v.name, v.arch, v.dtype, v.arithmetic, v.of.settings] for v in found],
    "source": sources.digest("aot"),
}))
"""


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
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "nce_rows.py"
    source = (ROOT / "kernels" / "nce_rows.py").read_text(encoding="utf-8")
    assert source.count(BARRIER) == 1
    path.write_text(source.replace(BARRIER, ""), encoding="utf-8")
    return compiled(SCRIPT, str(path))


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


def test_some_kernels_compile_here_and_pass(result):
    assert len(result["live"]) > 20
    assert {row["kernel"] for row in result["live"]} == {*aot.FUSED, "nce_rows"}
    assert result["bad"] == []


def test_gradients_over_their_products_without_a_barrier_are_caught(result):
    assert len(result["bare"]) == 6  # three types, both kinds of negatives
    for sentences in result["bare"]:
        assert len(sentences) == 1
        assert "no barrier between the loads of a tile and its stores" in sentences[0]


def test_committed_rows_are_of_this_source_and_cover_every_variant(result, rows):
    hint = "run: python -m tests.kernels.aot"
    assert {row["source"] for row in rows} == {result["source"]}, hint
    fields = ("name", "arch", "dtype", "arithmetic", "settings")
    found = [json.dumps([row[field] for field in fields], sort_keys=True) for row in rows]
    expected = [json.dumps(variant, sort_keys=True) for variant in result["expected"]]
    assert sorted(found) == sorted(expected), hint


def test_committed_rows_pass_and_planted_violations_do_not(rows):
    assert not any(map(aot.violations, rows))
    fused = next(row for row in rows if row["wgmma"] and not row["measured"])
    measured = next(row for row in rows if row["measured"] and row["block_row"]["descriptors"])
    loads = next(row for row in rows if row["tma"])
    gradients = next(row for row in rows if row["settings"].get("GRADIENTS") and row["load_bytes"])
    scale = next(row for row in rows if row["kernel"] == "nce_scale")
    products = [row for row in rows if row["kernel"] == "residual_product"]
    by_pointer = next(row for row in products if not row["block_row"]["descriptors"])
    pools = [r for r in rows if r["settings"].get("channels") == "i32:16"]
    planted = (
        *(fused | change for change in ({"spills": 129}, {"shared_bytes": 10**6}, {"fp64": 1})),
        *(fused | change for change in ({"wgmma": 0}, {"loop_spills": 1})),
        *(measured | change for change in ({"spills": 1025}, {"loop_spills": 1})),
        loads | {"tma": 0},
        *(product | {"spills": 4} for product in products),
        *(by_pointer | {name: 0} for name in ("load_bytes", "store_bytes")),
        *(gradients | change for change in ({"spills": 1}, {"barrier": False})),
        *(gradients | {name: gradients[name] - 16} for name in ("load_bytes", "store_bytes")),
        *(scale | {name: 0} for name in ("load_bytes", "store_bytes")),
        *(pool | {"load_bytes": pool["load_bytes"] - 16} for pool in pools),
        *(pool | {"spills": 4} for pool in pools),
    )
    assert [len(aot.violations(row)) for row in planted] == [1] * len(planted)


@pytest.mark.parametrize(
    ("assembly", "spills"),
    [
        (".L_x_1:\n LDL R1\n HGMMA R2\n STL R1\n @P0 BRA `(.L_x_1)\n", 2),
        (".L_x_0:\n STL R1\n.L_x_1:\n HMMA R2\n @P0 BRA `(.L_x_1)\n LDL R1\n BRA `(.L_x_0)\n", 0),
        (".L_x_0:\n LDL R1\n @P0 BRA `(.L_x_0)\n UTCHMMA R2\n", 0),
        ("", 0),
    ],
)
def test_spills_are_counted_in_the_innermost_loop_that_multiplies(assembly, spills):
    assert aot.spills_of_products(assembly) == spills


def test_chosen_variants_cover_every_pair():
    every, chosen = aot.all_variants(), aot.variants()
    assert len(chosen) < len(every) / 5
    for group in {aot.group_of(variant) for variant in every}:
        cases, few = ([v for v in some if aot.group_of(v) == group] for some in (every, chosen))
        assert not pairwise.uncovered(cases, few, lambda v: v.settings)


def test_a_pair_that_is_left_out_is_found():
    cases = [dict(zip("abc", case, strict=True)) for case in itertools.product("012", "012", "01")]
    chosen = pairwise.covering(cases, dict)
    assert len(chosen) == 9
    assert not pairwise.uncovered(cases, chosen, dict)
    for index in range(len(chosen)):
        missing = pairwise.uncovered(cases, chosen[:index] + chosen[index + 1 :], dict)
        assert (("a", chosen[index]["a"]), ("b", chosen[index]["b"])) in missing


@cache
def known(arch):
    """What the gate knows of an architecture: all compilations, and pairs of settings by kernel."""
    every = compilations.compilations(arch)
    pairs, shared = {}, arch != "sm_90"
    for variant in aot.variants():
        if aot.group_of(variant)[1] == ("others" if shared and not variant.fused else arch):
            found = pairs.setdefault(variant.of.kernel, set())
            found |= pairwise.pairs_of(variant.of.settings)
    return set(every), pairs


@pytest.mark.parametrize("descriptors", [False, True])
@pytest.mark.parametrize("row", nce_tile_table.TABLE, ids=str)
def test_every_launch_of_a_call_is_known_to_the_gate(monkeypatch, row, descriptors):
    """Of public calls with every type, clip, plan, kind of negatives and upstream."""
    arch, arithmetic, _ = row
    tile_set = compilations.with_descriptors(nce_tile_table.TABLE[row], arch, descriptors)
    for name in ("write_products", "write_source_gradient", "write_target_gradient"):
        monkeypatch.setattr(triton_passes, name, lambda *_, **__: None)
    monkeypatch.setattr(triton_fused, "check_multiplies", lambda src: None)  # nothing runs
    every, pairs = known(arch)
    found = []
    with compilations.using(tile_set, arithmetic), compilations.recorded(found):
        for dtype, clip, mode in itertools.product(
            compilations.TYPES[arithmetic], compilations.CLIPS, ("keep", "recompute", "one_pass")
        ):
            plan_all(monkeypatch, mode)
            call_everything(dtype, clip)
    assert {one.kernel for one in found} >= {"nce_rows", "nce_stack", "nce_sums", "nce_finish"}
    assert ("nce_forward" in {one.kernel for one in found}) == tile_set.fused
    for one in dict.fromkeys(found):
        assert one in every
        assert pairwise.pairs_of(one.settings) <= pairs[one.kernel]


def call_everything(dtype, clip):
    """Losses of one pairing and of several, and gradients of every combination of results."""
    images, width = 170, 64
    src = torch.zeros(2, images, width, dtype=dtype, device=DEVICE, requires_grad=True)
    trg = torch.zeros(images, 49, width, dtype=dtype, device=DEVICE, requires_grad=True)
    for negatives in NEGATIVES:
        options = {"clip": clip, "negatives": negatives, "backend": "triton"}
        output = nce_log_prob(src, trg, **options)
        loss, mean_sq = nce_loss(src, trg, **options)
        scalars = [output.log_prob.sum(), output.mean_sq.sum(), loss.sum(), mean_sq.sum()]
        for places in ((0,), (1,), (0, 1), (2,), (3,), (2, 3)):
            total = sum(scalars[place] for place in places)
            torch.autograd.grad(total, (src, trg), retain_graph=True)
        objective = nce_objective(src, trg, mean_sq_weight=0.1, **options).objective
        torch.autograd.grad(objective, (src, trg))
        nce_log_prob(src.detach(), trg.detach(), **options)
    maps = [
        torch.zeros(images, width, side, side, dtype=dtype, device=DEVICE)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
        for side in (1, 5, 7) * 2
    ]
    module = LossMultiNCE(tclip=clip, backend="triton")
    for total in (sum(module(*maps)), module.objective(*maps).objective):
        torch.autograd.grad(total, maps)
