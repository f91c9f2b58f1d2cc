"""Compile the kernels ahead of time, without a GPU, for every architecture of the tile table.

``python -m tests.kernels.aot`` rewrites ``benchmarks/results/aot.jsonl`` and fails on a violation.
Triton must not be in interpreter mode (TRITON_INTERPRET unset).

Not all launches are compiled but enough for every two settings that occur together in one: of each
kernel that multiplies on each architecture, of each other kernel on sm_90, and, with the
architecture as a setting, on the others.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
from amdim_fast.kernels import (
    nce_backward,
    nce_ends,
    nce_forward,
    nce_rows,
    nce_tile_table,
    residual,
)
from amdim_fast.kernels.nce_tiles import Tile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from amdim_fast.nce.tile_file import TILE_FIELDS
from benchmarks import sources
from tests.kernels.compilations import Compilation, compilations
from tests.kernels.pairwise import covering

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "aot.jsonl"
# Compute capability that each architecture of the table is compiled for.
CAPABILITIES = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "default": 89}
MODULES = (nce_forward, nce_backward, nce_rows, nce_ends, residual)
FUSED = ("nce_forward", "nce_backward", "residual_product")
# Bytes a thread may spill in fused kernels, outside their loop over features: values that are not
# used until a product is done. More where a GPU found the tile fastest nevertheless.
SPILL_BUDGET, MEASURED_SPILL_BUDGET = 128, 1024
# Accesses of local memory a step of that loop may have where a tile for descriptors takes pointers.
FALLBACK_LOOP_SPILLS = 8
CLIPS = ("shifted", "tanh", "no clip")
GRADIENTS = ("", "gradients of the objective", "gradients of results")
EPILOGUES = ("sum", "mask")
THREADS_PER_WARP = 32
LOAD = re.compile(r"\bld\.global(?:\.\S+?)??(?:\.v(\d))?\.b(\d+)\s")
STORE = re.compile(r"\bst\.global(?:\.\S+?)??(?:\.v(\d))?\.b(\d+)\s")
LOCAL_MEMORY = re.compile(r"\b(?:LDL|STL)\b")
MULTIPLY = re.compile(r"\b\w*MMA\b")
BLOCK = re.compile(r"^\$L__BB\S*:", re.MULTILINE)
BARRIER = re.compile(r"\bbar(?:rier)?\.(?:cta\.)?sync\b")


class Variant(NamedTuple):
    """One compilation."""

    arch: str
    of: Compilation

    @property
    def settings(self) -> dict[str, Any]:
        """Everything by name."""
        return self.of.settings | {"arch": self.arch}

    @property
    def fused(self) -> bool:
        """Whether the kernel multiplies."""
        return self.of.kernel in FUSED

    @property
    def dtype(self) -> str:
        """Type of the features or gradients."""
        types = " ".join(kind for _, kind in self.of.arguments)
        return next((name for name in ("bf16", "fp16") if name in types), "fp32")

    @property
    def arithmetic(self) -> str:
        """That of the products, "elementwise" without any."""
        if not self.fused:
            return "elementwise"
        return "half" if self.dtype != "fp32" else self.settings["PRECISION"]

    @property
    def tile(self) -> Tile | None:
        """That of a fused kernel."""
        names = ("TILE_ROWS", "TILE_COLUMNS", "TILE_WIDTH", "SWIZZLE_ROWS")
        ends = ("warps", "stages", "DESCRIPTORS")
        return Tile(*(self.settings[name] for name in names + ends)) if self.fused else None

    @property
    def measured(self) -> bool:
        """Whether a GPU found the tile of a fused kernel fastest."""
        if self.tile is None or not self.of.kernel.startswith("nce"):
            return False
        rows = [nce_tile_table.TABLE[key] for key in nce_tile_table.MEASURED if key[0] == self.arch]
        found = (getattr(row, self.of.kernel.removeprefix("nce_")) for row in rows)
        return self.tile in [t._replace(descriptors=self.tile.descriptors) for t in found]

    @property
    def name(self) -> str:
        """Kernel and what it does, the name in the rows."""
        found = self.settings
        parts = [
            "fused" * self.fused,
            "statistics" * found.get("STATISTICS", False),
            EPILOGUES[found["EPILOGUE"]] if "EPILOGUE" in found else "",
            GRADIENTS[found.get("GRADIENTS", 0)],
            CLIPS[found["CLIP"]] if "CLIP" in found else "",
            "same location" * found.get("SAME_LOCATION", False),
            "descriptors" * found.get("DESCRIPTORS", False),
        ]
        return " ".join([self.of.kernel, ", ".join(part for part in parts if part)]).strip()


@cache
def all_variants() -> list[Variant]:
    """Every launch on every architecture."""
    return [Variant(arch, of) for arch in CAPABILITIES for of in compilations(arch)]


@cache
def variants() -> list[Variant]:
    """Those that are compiled."""
    groups: dict[tuple[str, str], list[Variant]] = {}
    for variant in all_variants():
        groups.setdefault(group_of(variant), []).append(variant)
    return [v for group in groups.values() for v in covering(group, lambda v: v.settings)]


def group_of(variant: Variant) -> tuple[str, str]:
    """Kernel and architectures within which every two settings are compiled together."""
    apart = variant.fused or variant.arch == "sm_90"
    return variant.of.kernel, variant.arch if apart else "others"


def compile_variant(variant: Variant, modules: Iterable[ModuleType] = MODULES) -> dict[str, Any]:
    """Compile it and return its row: registers, spills, shared memory and instructions."""
    of = variant.of
    function = next(getattr(m, of.kernel) for m in modules if hasattr(m, of.kernel))
    constants = dict(of.constants)
    types, aligned = {}, {}
    for name, kind in of.arguments:
        types[name], _, hint = kind.partition(":")
        if hint == "16":
            aligned[(function.arg_names.index(name),)] = [["tt.divisibility", 16]]
        if hint == "1" or kind == "None":
            constants[name] = 1 if hint else None
    capability = CAPABILITIES[variant.arch]
    compiled = triton.compile(
        ASTSource(
            function,
            {n: "constexpr" if n in constants else types[n] for n in function.arg_names},
            constants,
            aligned,
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": of.warps, "num_stages": of.stages, "enable_fp_fusion": True},
    )
    usage = _resource_usage(compiled.asm["cubin"])
    assembly = _tool("nvdisasm", "-c", cubin=compiled.asm["cubin"]) if variant.fused else ""
    ptx = compiled.asm["ptx"]
    tile = variant.tile
    return {
        "name": variant.name,
        "kernel": of.kernel,
        "arch": variant.arch,
        "capability": capability,
        "dtype": variant.dtype,
        "arithmetic": variant.arithmetic,
        "block_row": tile and dict(zip(TILE_FIELDS, tile, strict=True)),
        "measured": variant.measured,
        "settings": of.settings,
        "registers": usage["REG"],
        "spills": usage["STACK"],
        "loop_spills": spills_of_products(assembly),
        "shared_bytes": compiled.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "tma": ptx.count("cp.async.bulk.tensor"),
        "fp64": len(re.findall(r"\.f64\b", ptx)),
        "load_bytes": _bytes_at_once(LOAD, ptx, least=16),
        "store_bytes": _bytes_at_once(STORE, ptx, least=8),
        "barrier": has_barrier(ptx),
        "source": sources.digest("aot"),
        "versions": {"triton": triton.__version__, "torch": torch.__version__},
    }


def _bytes_at_once(access: re.Pattern[str], ptx: str, least: int) -> int:
    """Bytes of a thread's accesses of at least so many bytes each."""
    sizes = [int(bits) * int(count or 1) // 8 for count, bits in access.findall(ptx)]
    return sum(size for size in sizes if size >= least)


def has_barrier(ptx: str) -> bool:
    """Whether all threads wait in the last basic block with stores, after loads and before stores.

    In a pass over products that block ends the loop over tiles.
    """
    blocks = [block for block in BLOCK.split(ptx) if STORE.search(block)]
    before, *_ = STORE.split(blocks[-1]) if blocks else [""]
    end = max((load.end() for load in LOAD.finditer(before)), default=0)
    return BARRIER.search(before, end) is not None


def spills_of_products(assembly: str) -> int:
    """Accesses of local memory in the innermost loop that multiplies, 0 without one."""
    lines = assembly.splitlines()
    labels = {line[:-1]: index for index, line in enumerate(lines) if line.startswith(".L_")}
    loops = []
    for end, line in enumerate(lines):
        target = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)
        start = labels.get(target[1], end) if target else end
        if any(map(MULTIPLY.search, lines[start:end])):
            loops.append((end - start, start))
    length, start = min(loops, default=(0, 0))
    return sum(map(bool, map(LOCAL_MEMORY.search, lines[start : start + length])))


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack per thread (REG, STACK)."""
    text = _tool("cuobjdump", "--dump-resource-usage", cubin=cubin)
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", text)}


def _tool(name: str, *options: str, cubin: bytes) -> str:
    """What a tool that comes with Triton says about a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [getattr(triton.knobs.nvidia, name).path, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def violations(row: dict[str, Any]) -> list[str]:
    """One sentence for each requirement that the compiled kernel does not meet."""
    where = f"{row['name']} ({row['arch']}, {row['dtype']})"
    found = []
    tile = row["block_row"]
    budget = 0
    if tile and row["kernel"] != "residual_product":
        budget = MEASURED_SPILL_BUDGET if row["measured"] else SPILL_BUDGET
    if row["spills"] > budget:
        found.append(f"{where} spills {row['spills']} bytes a thread, more than {budget}")
    falls_back = row["measured"] and not tile["descriptors"]
    if row["loop_spills"] > (FALLBACK_LOOP_SPILLS if falls_back else 0):
        found.append(f"{where} spills in the loop over features")
    limit = nce_tile_table.SHARED_BYTES[row["arch"]]
    if row["shared_bytes"] > limit:
        found.append(f"{where} takes {row['shared_bytes']} bytes of shared memory of {limit}")
    if row["fp64"]:
        found.append(f"{where} has {row['fp64']} fp64 instructions")
    if tile and row["arch"] == "sm_90" and row["arithmetic"] == "half" and not row["wgmma"]:
        found.append(f"{where} has no wgmma instruction")
    if tile and tile["descriptors"] and not row["tma"]:
        found.append(f"{where} has no cp.async.bulk.tensor instruction")
    settings = row["settings"]
    itemsize = 4 if row["dtype"] == "fp32" else 2
    threads = settings["warps"] * THREADS_PER_WARP
    loaded = stored = 0
    if row["kernel"] == "nce_rows":
        gradients = settings["GRADIENTS"] > 0
        if gradients and not row["barrier"]:
            found.append(f"{where} has no barrier between the loads of a tile and its stores")
        # Images of any number of locations are not aligned.
        if not settings["SAME_LOCATION"]:
            loaded = settings["TILE_COLUMNS"] // threads * 4 * (settings["STATISTICS"] + gradients)
            stored = settings["TILE_COLUMNS"] // threads * itemsize * gradients
    elif row["kernel"] == "residual_product":
        if not tile["descriptors"]:
            loaded = stored = tile["rows"] * tile["columns"] // threads * itemsize
    elif row["kernel"].startswith("residual") and settings["channels"].endswith(":16"):
        values = settings["PIXELS"] * settings["CHANNELS"] // threads * itemsize
        back = row["kernel"].endswith("backward")
        reach = -(-settings["KERNEL"] // settings["STRIDE"]) if back else settings["KERNEL"]
        loaded, stored = values * (reach**2 + 1), values * (1 if back else 2)
    elif row["kernel"] == "nce_scale":
        loaded = stored = settings["TILE"] // threads * itemsize
    if row["load_bytes"] < loaded:
        found.append(f"{where} loads {row['load_bytes']} of {loaded} bytes 128 bits at once")
    if row["store_bytes"] < stored:
        found.append(f"{where} stores {row['store_bytes']} of {stored} bytes 64 bits at once")
    return found


def main(path: Path = RESULTS) -> int:
    """Compile, print and write all rows; 1 if any violates a requirement."""
    rows = []
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        for row in processes.map(compile_variant, variants()):
            rows.append(row)
            shown = ("arch", "dtype", "name", "registers", "spills", "shared_bytes", "wgmma", "tma")
            print(json.dumps([row[field] for field in shown]), *violations(row), flush=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    failed = [sentence for row in rows for sentence in violations(row)]
    print(f"{len(rows)} compilations, {len(failed)} violations")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
