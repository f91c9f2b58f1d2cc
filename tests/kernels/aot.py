"""Compile every shipped (kernel, type, row of the tile table) ahead of time, without a GPU.

``python -m tests.kernels.aot`` rewrites ``benchmarks/results/aot.jsonl`` and fails on a violation.
Triton must not be in interpreter mode (TRITON_INTERPRET unset).
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from amdim_fast.kernels import nce_backward, nce_clip, nce_forward, nce_scores, nce_tile_table
from amdim_fast.kernels.nce_tiles import Tile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from amdim_fast.nce.tile_file import TILE_FIELDS
from benchmarks import sources

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "aot.jsonl"
# Compute capability that each architecture of the table is compiled for.
CAPABILITIES = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "default": 89}
# Architectures of the table with tensor descriptors.
DESCRIPTORS = ("sm_90", "sm_100")
TYPES = {"half": ("fp16", "bf16"), "tf32": ("fp32",), "ieee": ("fp32",)}
# Bytes a thread may spill: values of a row that are not used until a tile's product is done.
SPILL_BUDGET = 128
FLOATS = ("scale", "steep", "depth", "clip")
TILE_SIDES = {"src": "TILE_ROWS", "trg": "TILE_COLUMNS"}
SHARED_TYPES = ("src", "trg", "grad_scores")
POINTERS = (
    *(*SHARED_TYPES, "scores", "own", "totals", "maxima", "squares", "neg", "row_squares"),
    *("grad_own", "weight", "penalty"),
)


class Variant(NamedTuple):
    """One compilation: a kernel, its architecture, type and tile, and its constants."""

    kernel: str
    arch: str
    arithmetic: str
    dtype: str
    small: bool
    tile: Tile
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """Kernel and mode, the name in the rows."""
        if self.kernel == "nce_combine":
            return f"{self.kernel} clip={self.constants['CLIP']}"
        modes = ("fused", "fused, keeping", "over products")
        clips = ("shifted", "tanh", "no clip")
        where = ", same location" if self.constants["SAME_LOCATION"] else ""
        loads = ", descriptors" if self.constants["DESCRIPTORS"] else ""
        mode = modes[self.constants["SCORES"]]
        return f"{self.kernel} {mode}, {clips[self.constants['CLIP']]}{where}{loads}"


def variants(archs: tuple[str, ...] = tuple(CAPABILITIES)) -> Iterator[Variant]:
    """Every compilation that the launcher can need, each once.

    Table rows that compile a kernel alike, such as those over products for small and large D, share
    one. Descriptors are compiled wherever the GPU has them, whether or not the table uses them.
    """
    seen = set()
    for variant in _launched(archs):
        key = repr(variant._replace(small=False, arithmetic=""))
        if key not in seen:
            seen.add(key)
            yield variant


def _launched(archs: tuple[str, ...]) -> Iterator[Variant]:
    clips = [clip.value for clip in (nce_clip.SHIFTED, nce_clip.TANH, nce_clip.NO_CLIP)]
    read, compute, keep = (
        mode.value for mode in (nce_scores.READ, nce_scores.COMPUTE, nce_scores.COMPUTE_AND_STORE)
    )
    # (kernel, field of TileSet, mode, same location). With same_location no kernel keeps scores.
    fused = (
        ("nce_forward", "forward", compute, False),
        ("nce_forward", "forward", compute, True),
        ("nce_forward", "forward", keep, False),
        ("nce_backward", "backward", compute, False),
    )
    over_products = tuple(
        (f"nce_{name}", f"read_{name}", read, same)
        for name in ("forward", "backward")
        for same in (False, True)
    )
    for (arch, arithmetic, small), tile_set in nce_tile_table.TABLE.items():
        if arch not in archs:
            continue
        for dtype, (kernel, field, mode, same), clip in itertools.product(
            TYPES[arithmetic], fused + over_products, clips
        ):
            multiplies = mode != read
            loads = (False, True) if multiplies and not same and arch in DESCRIPTORS else (False,)
            for descriptors in loads:
                tile = getattr(tile_set, field)._replace(descriptors=descriptors)
                constants = {
                    "SCORES": mode,
                    "CLIP": clip,
                    "SAME_LOCATION": same,
                    "TILE_ROWS": tile.rows,
                    "TILE_COLUMNS": tile.columns,
                    "TILE_WIDTH": tile.width or 16,
                    "SWIZZLE_ROWS": tile.swizzle,
                    "DESCRIPTORS": descriptors,
                    "PRECISION": "tf32" if multiplies and arithmetic == "tf32" else "ieee",
                }
                yield Variant(kernel, arch, arithmetic, dtype, small, tile, constants)
    combine = Tile(rows=128, columns=0, width=0, swizzle=1, warps=4, stages=1)
    for arch in archs:
        for clip in clips:
            constants = {"CLIP": clip, "TILE_ROWS": combine.rows}
            yield Variant("nce_combine", arch, "ieee", "fp32", False, combine, constants)


def compile_variant(variant: Variant) -> dict[str, Any]:
    """Compile it and return its row: registers, spills, shared memory and instructions."""
    module = nce_backward if variant.kernel == "nce_backward" else nce_forward
    function = getattr(module, variant.kernel)
    signature = {}
    for name in function.arg_names:
        if name in variant.constants:
            signature[name] = "constexpr"
        elif name in TILE_SIDES and variant.tile.descriptors:
            shape = [variant.constants[size] for size in (TILE_SIDES[name], "TILE_WIDTH")]
            signature[name] = f"tensordesc<{variant.dtype}{shape}>"
        elif name in POINTERS:
            signature[name] = f"*{variant.dtype if name in SHARED_TYPES else 'fp32'}"
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(function.arg_names)
        if signature[name].startswith("*")
    }
    capability = CAPABILITIES[variant.arch]
    options = {"num_warps": variant.tile.warps, "num_stages": variant.tile.stages}
    compiled = triton.compile(
        ASTSource(function, signature, variant.constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    tile = dict(zip(TILE_FIELDS, variant.tile, strict=True))
    usage = _resource_usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return {
        "name": variant.name,
        "kernel": variant.kernel,
        "arch": variant.arch,
        "capability": capability,
        "dtype": variant.dtype,
        "arithmetic": variant.arithmetic,
        "block_row": {"small_width": variant.small, **tile},
        "registers": usage["REG"],
        "spills": usage["STACK"],
        "shared_bytes": compiled.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "tma": ptx.count("cp.async.bulk.tensor"),
        "fp64": len(re.findall(r"\.f64\b", ptx)),
        "source": sources.digest("aot"),
        "versions": {"triton": triton.__version__, "torch": torch.__version__},
    }


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack per thread (REG, STACK), read by cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", text)}


def violations(row: dict[str, Any]) -> list[str]:
    """One sentence for each requirement that the compiled kernel does not meet."""
    where = f"{row['name']} ({row['arch']}, {row['dtype']})"
    found = []
    if row["spills"] > SPILL_BUDGET:
        found.append(f"{where} spills {row['spills']} bytes a thread, more than {SPILL_BUDGET}")
    limit = nce_tile_table.SHARED_BYTES[row["arch"]]
    if row["shared_bytes"] > limit:
        found.append(f"{where} takes {row['shared_bytes']} bytes of shared memory of {limit}")
    if row["fp64"]:
        found.append(f"{where} has {row['fp64']} fp64 instructions")
    multiplies = row["kernel"] != "nce_combine" and "over products" not in row["name"]
    half = row["dtype"] in ("fp16", "bf16")
    if row["arch"] == "sm_90" and multiplies and half and not row["wgmma"]:
        found.append(f"{where} has no wgmma instruction")
    if row["block_row"]["descriptors"] and not row["tma"]:
        found.append(f"{where} has no cp.async.bulk.tensor instruction")
    return found


def main(archs: tuple[str, ...] = tuple(CAPABILITIES), path: Path = RESULTS) -> int:
    """Compile, print and write all rows; 1 if any violates a requirement."""
    rows = []
    for variant in variants(archs):
        row = compile_variant(variant)
        rows.append(row)
        fields = ("arch", "dtype", "name", "registers", "spills", "shared_bytes", "wgmma", "tma")
        print(json.dumps([row[field] for field in fields]), *violations(row), flush=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    failed = [sentence for row in rows for sentence in violations(row)]
    print(f"{len(rows)} compilations, {len(failed)} violations")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
