"""Compile every shipped (kernel, type, row of the block table) ahead of time, without a GPU.

``python -m benchmarks.aot`` rewrites ``benchmarks/results/aot.jsonl`` and fails on a violation.
Triton must not be in its interpreter (TRITON_INTERPRET unset).
"""

from __future__ import annotations

import hashlib
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
from amdim_fast.kernels import nce_backward, nce_blocks, nce_forward, nce_scores
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.harness import RESULTS, ROOT, append_row

RESULTS_PATH = RESULTS / "aot.jsonl"
# Compute capability each architecture of the table is compiled for, and bytes of shared memory a
# program may take there.
TARGETS = {
    "sm_80": (80, 163 * 1024),
    "sm_90": (90, 227 * 1024),
    "sm_100": (100, 227 * 1024),
    "default": (89, 99 * 1024),
}
TYPES = {"half": ("fp16", "bf16"), "tf32": ("fp32",), "ieee": ("fp32",)}
# Bytes a thread may spill: some values of a row that wait for the end of a tile's product.
SPILL_BUDGET = 160
FLOATS = ("scale", "steep", "depth", "clip")
SHARED_TYPES = ("src", "trg", "grad_scores")
POINTERS = (
    *(*SHARED_TYPES, "scores", "own", "totals", "maxima", "squares", "neg", "row_squares"),
    *("grad_own", "weight", "penalty"),
)


class Variant(NamedTuple):
    """One compilation: a kernel for an architecture, type and tile, and its constants."""

    kernel: str
    arch: str
    arithmetic: str
    dtype: str
    small: bool
    tile: nce_blocks.Tile
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """Kernel and mode, as the rows call it."""
        if self.kernel == "nce_combine":
            return f"{self.kernel} clip={self.constants['CLIP']}"
        modes = ("fused", "fused, keeping", "over products")
        clips = ("shifted", "tanh", "no clip")
        where = ", same location" if self.constants["SAME_LOCATION"] else ""
        ragged = "" if self.constants["WHOLE_WIDTH"] else ", any D"
        mode = modes[self.constants["SCORES"]]
        return f"{self.kernel} {mode}, {clips[self.constants['CLIP']]}{where}{ragged}"


def variants(archs: tuple[str, ...] = tuple(TARGETS)) -> Iterator[Variant]:
    """Every kernel the launcher starts: all modes, types and widths, rarer clips at wide D only."""
    read, compute, keep = (
        mode.value for mode in (nce_scores.READ, nce_scores.COMPUTE, nce_scores.COMPUTE_AND_STORE)
    )
    shifted, tanh, no_clip = (
        clip.value for clip in (nce_scores.SHIFTED, nce_scores.TANH, nce_scores.NO_CLIP)
    )
    # (kernel, field of Blocks, mode, clip, same location, whether BLOCK_WIDTH divides D)
    fused = [
        ("nce_forward", "forward", compute, shifted, False, True),
        ("nce_forward", "forward", keep, shifted, False, True),
        ("nce_backward", "backward", compute, shifted, False, True),
    ]
    fused_wide = [
        ("nce_forward", "forward", compute, tanh, False, True),
        ("nce_forward", "forward", compute, no_clip, False, True),
        ("nce_forward", "forward", compute, shifted, True, True),
        ("nce_forward", "forward", compute, shifted, False, False),
        ("nce_backward", "backward", compute, tanh, False, True),
        ("nce_backward", "backward", compute, no_clip, False, True),
        ("nce_backward", "backward", compute, shifted, False, False),
    ]
    over_products = [
        (f"nce_{name}", f"read_{name}", read, clip, same, True)
        for name in ("forward", "backward")
        for clip in (shifted, tanh, no_clip)
        for same in (False, True)
    ]
    for (arch, arithmetic, small), blocks in nce_blocks.TABLE.items():
        if arch not in archs:
            continue
        cases = (fused if small else fused + fused_wide) if blocks.fused else []
        cases = cases if small else cases + over_products
        for dtype in TYPES[arithmetic]:
            for kernel, field, mode, clip, same, whole in cases:
                tile = getattr(blocks, field)
                constants = {
                    "SCORES": mode,
                    "CLIP": clip,
                    "SAME_LOCATION": same,
                    "BLOCK_ROWS": tile.rows,
                    "BLOCK_COLUMNS": tile.columns,
                    "BLOCK_WIDTH": tile.width or 16,
                    "GROUP_ROWS": tile.group,
                    "WHOLE_WIDTH": whole,
                    "ALIGNMENT": 16 if whole else 8,
                    "UNIT": 1 if mode == compute else 16,
                    "PRECISION": "tf32" if arithmetic == "tf32" else "ieee",
                }
                yield Variant(kernel, arch, arithmetic, dtype, small, tile, constants)
    combine = nce_blocks.Tile(rows=128, columns=0, width=0, group=1, warps=4, stages=1)
    for arch in archs:
        for clip in (shifted, tanh):
            constants = {"CLIP": clip, "BLOCK_ROWS": combine.rows}
            yield Variant("nce_combine", arch, "ieee", "fp32", False, combine, constants)


def compile_variant(variant: Variant) -> dict[str, Any]:
    """A row: what the compiler made of it."""
    module = nce_backward if variant.kernel == "nce_backward" else nce_forward
    function = getattr(module, variant.kernel)
    signature = {}
    for name in function.arg_names:
        if name in variant.constants:
            signature[name] = "constexpr"
        elif name in POINTERS:
            signature[name] = f"*{variant.dtype if name in SHARED_TYPES else 'fp32'}"
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(function.arg_names)
        if signature[name].startswith("*")
    }
    capability, _ = TARGETS[variant.arch]
    options = {"num_warps": variant.tile.warps, "num_stages": variant.tile.stages}
    compiled = triton.compile(
        ASTSource(function, signature, variant.constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    usage = _resource_usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return {
        "name": variant.name,
        "kernel": variant.kernel,
        "arch": variant.arch,
        "capability": capability,
        "dtype": variant.dtype,
        "arithmetic": variant.arithmetic,
        "block_row": {"small_width": variant.small, **variant.tile._asdict()},
        "registers": usage["REG"],
        "spills": usage["STACK"],
        "shared_bytes": compiled.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "fp64": len(re.findall(r"\.f64\b", ptx)),
        "source": source_hash(),
        "versions": {"triton": triton.__version__, "torch": torch.__version__},
    }


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack a thread (REG, STACK), as cuobjdump reads them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", text)}


def source_hash() -> str:
    """Of the kernels and the table: a row speaks for this text only."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "kernels").glob("nce_*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def violations(row: dict[str, Any]) -> list[str]:
    """Sentences about what the gate does not let pass."""
    where = f"{row['name']} ({row['arch']}, {row['dtype']})"
    found = []
    if row["spills"] > SPILL_BUDGET:
        found.append(f"{where} spills {row['spills']} bytes a thread, more than {SPILL_BUDGET}")
    limit = TARGETS[row["arch"]][1]
    if row["shared_bytes"] > limit:
        found.append(f"{where} takes {row['shared_bytes']} bytes of shared memory of {limit}")
    if row["fp64"]:
        found.append(f"{where} has {row['fp64']} fp64 instructions")
    multiplies = row["kernel"] != "nce_combine" and "over products" not in row["name"]
    half = row["dtype"] in ("fp16", "bf16")
    if row["arch"] == "sm_90" and multiplies and half and not row["wgmma"]:
        found.append(f"{where} has no wgmma instruction")
    return found


def main(archs: tuple[str, ...] = tuple(TARGETS), path: Path = RESULTS_PATH) -> int:
    rows = []
    for variant in variants(archs):
        row = compile_variant(variant)
        rows.append(row)
        fields = ("arch", "dtype", "name", "registers", "spills", "shared_bytes", "wgmma")
        print(json.dumps([row[field] for field in fields]), *violations(row), flush=True)
    path.unlink(missing_ok=True)
    for row in rows:
        append_row(row, path)
    failed = [sentence for row in rows for sentence in violations(row)]
    print(f"{len(rows)} compilations, {len(failed)} violations")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
