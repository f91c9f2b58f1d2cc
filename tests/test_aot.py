"""The ahead-of-time gate: committed rows speak for these kernels, and a few compile here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The interpreter of the other tests and the compiler exclude each other in one process.
SCRIPT = """
import json, sys
from benchmarks import aot
request = json.loads(sys.argv[1])
chosen = [v for v in aot.variants() if (v.arch, v.dtype) in map(tuple, request["live"])]
live = [aot.compile_variant(v) for v in chosen if v.name in request["names"] and not v.small]
expected = [[v.name, v.arch, v.dtype, v.arithmetic, v.small, list(v.tile)] for v in aot.variants()]
print(json.dumps({"live": live, "bad": [s for row in live for s in aot.violations(row)],
    "expected": expected, "source": aot.source_hash()}))
"""
NAMES = (
    "nce_forward fused, shifted",
    "nce_forward fused, keeping, shifted",
    "nce_backward fused, shifted",
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
    hint = "run: python -m benchmarks.aot"
    assert {row["source"] for row in rows} == {result["source"]}, hint
    found = []
    for row in rows:
        block = dict(row["block_row"])
        small = block.pop("small_width")
        key = [row[field] for field in ("name", "arch", "dtype", "arithmetic")]
        found.append([*key, small, list(block.values())])
    assert sorted(map(str, found)) == sorted(map(str, result["expected"])), hint


def test_committed_rows_pass_and_planted_violations_do_not(rows):
    row = next(
        r for r in rows if r["name"] == NAMES[0] and (r["arch"], r["dtype"]) == ("sm_90", "bf16")
    )
    planted = [{"spills": 10_000}, {"shared_bytes": 10**6}, {"fp64": 1}, {"wgmma": 0}]
    script = (
        "import json, sys\nfrom benchmarks import aot\n"
        "print(json.dumps([aot.violations(row) for row in json.load(open(sys.argv[1]))]))"
    )
    path = ROOT / "benchmarks" / "results" / "aot.jsonl"
    read = script.replace("json.load(open(sys.argv[1]))", "map(json.loads, open(sys.argv[1]))")
    assert not any(compiled(read, str(path)))
    caught = compiled(
        script.replace("json.load(open(sys.argv[1]))", "json.loads(sys.argv[1])"),
        json.dumps([row | change for change in planted]),
    )
    assert [len(sentences) for sentences in caught] == [1, 1, 1, 1]
