"""The built-in tile table: the tiles of the contrastive kernels by architecture, type and width.

Every row passes the ahead-of-time check of ``tests/kernels/aot.py`` for its architecture. The fused
tiles of the rows in ``MEASURED`` were the fastest of many on an H200 at D = 2048. Nothing else was
measured: not narrow features, float32 or other GPUs, and no tile over stored products.
"""

from __future__ import annotations

import torch
from amdim_fast.kernels.nce_tiles import SMALL_WIDTH, Tile, TileSet, arithmetic

# A thread has 16 or 8 entries of a tile; with more, few programs fit into the registers.
READ_FORWARD = Tile(rows=1, columns=4096, width=0, swizzle=1, warps=8, stages=1)
READ_BACKWARD = Tile(rows=1, columns=1024, width=0, swizzle=1, warps=4, stages=1)


def _fused(forward: Tile, backward: Tile) -> TileSet:
    return TileSet(True, forward, backward, READ_FORWARD, READ_BACKWARD)


# Tensor cores have no IEEE float32 products, so cuBLAS computes them; the tile is for comparison.
_IEEE = Tile(64, 64, 16, 8, 8, 2)
_IEEE_TILES = TileSet(False, _IEEE, _IEEE, READ_FORWARD, READ_BACKWARD)

# (architecture, arithmetic, whether D is at most SMALL_WIDTH) -> TileSet.
TABLE: dict[tuple[str, str, bool], TileSet] = {
    ("sm_80", "half", True): _fused(Tile(128, 128, 32, 8, 8, 3), Tile(128, 128, 32, 8, 8, 3)),
    ("sm_80", "half", False): _fused(Tile(128, 128, 32, 8, 8, 4), Tile(128, 128, 32, 8, 8, 4)),
    ("sm_80", "tf32", True): _fused(Tile(64, 128, 32, 8, 8, 3), Tile(64, 128, 32, 8, 8, 3)),
    ("sm_80", "tf32", False): _fused(Tile(64, 128, 32, 8, 8, 3), Tile(128, 128, 32, 8, 8, 3)),
    ("sm_90", "half", True): _fused(Tile(128, 128, 64, 8, 8, 3), Tile(64, 256, 64, 16, 8, 3)),
    ("sm_90", "half", False): _fused(
        Tile(256, 128, 64, 8, 8, 3, descriptors=True), Tile(128, 256, 64, 8, 8, 4, descriptors=True)
    ),
    ("sm_90", "tf32", True): _fused(Tile(128, 128, 32, 8, 8, 3), Tile(64, 256, 32, 16, 8, 3)),
    ("sm_90", "tf32", False): _fused(Tile(128, 128, 32, 8, 8, 4), Tile(64, 256, 32, 16, 8, 4)),
    ("sm_100", "half", True): _fused(Tile(128, 128, 64, 8, 8, 3), Tile(64, 256, 64, 16, 8, 3)),
    ("sm_100", "half", False): _fused(Tile(128, 128, 64, 8, 8, 4), Tile(64, 256, 64, 16, 8, 4)),
    ("sm_100", "tf32", True): _fused(Tile(128, 128, 32, 8, 8, 3), Tile(64, 256, 32, 16, 8, 3)),
    ("sm_100", "tf32", False): _fused(Tile(128, 128, 32, 8, 8, 4), Tile(64, 256, 32, 16, 8, 4)),
    # 99 KiB of shared memory: sm_86, sm_89, sm_120 and later ones.
    ("default", "half", True): _fused(Tile(128, 128, 32, 8, 8, 3), Tile(128, 128, 32, 8, 8, 3)),
    ("default", "half", False): _fused(Tile(128, 128, 32, 8, 8, 4), Tile(128, 128, 32, 8, 8, 4)),
    ("default", "tf32", True): _fused(Tile(64, 128, 32, 8, 8, 3), Tile(64, 128, 32, 8, 8, 3)),
    ("default", "tf32", False): _fused(Tile(128, 128, 32, 8, 8, 3), Tile(128, 128, 32, 8, 8, 3)),
}
TABLE |= {
    (architecture, "ieee", small): _IEEE_TILES
    for architecture in ("sm_80", "sm_90", "sm_100", "default")
    for small in (True, False)
}
# Rows whose fused tiles a GPU found fastest.
MEASURED = {("sm_90", "half", False)}
# Bytes of shared memory that a program may use.
SHARED_BYTES = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "default": 99 * 1024,
}
ARCHITECTURES = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}


def built_in(capability: tuple[int, int] | None, dtype: torch.dtype, width: int) -> TileSet:
    """The table's row for a compute capability (None in the interpreter), a type and a width D."""
    architecture = ARCHITECTURES.get(capability, "default") if capability else "default"
    return TABLE[architecture, arithmetic(dtype), width <= SMALL_WIDTH]


def architecture_of(capability: tuple[int, int]) -> str:
    """Name of a compute capability: "sm_90" for (9, 0)."""
    return f"sm_{capability[0]}{capability[1]}"
