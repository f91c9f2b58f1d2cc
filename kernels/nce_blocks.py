"""Tile sizes of the contrastive kernels: plain data, one row an architecture, type and width.

Every row passes the ahead-of-time gate of ``benchmarks/aot.py`` for its architecture; which row is
fastest is for a GPU to say, and none of these is measured yet. No row asks for descriptors: to the
compiler they are no better here, and each launch costs two of them on the host.
"""

from __future__ import annotations

import torch
from amdim_fast.kernels.nce_tiles import SMALL_WIDTH, Blocks, Tile, arithmetic

READ_FORWARD = Tile(rows=16, columns=256, width=0, group=8, warps=4, stages=1)
READ_BACKWARD = Tile(rows=8, columns=512, width=0, group=8, warps=4, stages=1)


def _fused(forward: Tile, backward: Tile) -> Blocks:
    return Blocks(True, forward, backward, READ_FORWARD, READ_BACKWARD)


# IEEE float32 products have no tensor core: cuBLAS multiplies, the tile is there for comparison.
_IEEE = Tile(64, 64, 16, 8, 8, 2)
_IEEE_BLOCKS = Blocks(False, _IEEE, _IEEE, READ_FORWARD, READ_BACKWARD)

# (architecture, arithmetic, whether D is at most SMALL_WIDTH) -> Blocks.
TABLE: dict[tuple[str, str, bool], Blocks] = {
    ("sm_80", "half", True): _fused(Tile(128, 128, 32, 8, 8, 3), Tile(128, 128, 32, 8, 8, 3)),
    ("sm_80", "half", False): _fused(Tile(128, 128, 32, 8, 8, 4), Tile(128, 128, 32, 8, 8, 4)),
    ("sm_80", "tf32", True): _fused(Tile(64, 128, 32, 8, 8, 3), Tile(64, 128, 32, 8, 8, 3)),
    ("sm_80", "tf32", False): _fused(Tile(64, 128, 32, 8, 8, 3), Tile(128, 128, 32, 8, 8, 3)),
    ("sm_90", "half", True): _fused(Tile(128, 128, 64, 8, 8, 3), Tile(64, 256, 64, 16, 8, 3)),
    ("sm_90", "half", False): _fused(Tile(128, 128, 64, 8, 8, 4), Tile(64, 256, 64, 16, 8, 4)),
    ("sm_90", "tf32", True): _fused(Tile(128, 128, 32, 8, 8, 3), Tile(64, 256, 32, 16, 8, 3)),
    ("sm_90", "tf32", False): _fused(Tile(128, 128, 32, 8, 8, 4), Tile(64, 256, 32, 16, 8, 4)),
    ("sm_100", "half", True): _fused(Tile(128, 128, 64, 8, 8, 3), Tile(64, 256, 64, 16, 8, 3)),
    ("sm_100", "half", False): _fused(Tile(128, 128, 64, 8, 8, 4), Tile(64, 256, 64, 16, 8, 4)),
    ("sm_100", "tf32", True): _fused(Tile(128, 128, 32, 8, 8, 3), Tile(64, 256, 32, 16, 8, 3)),
    ("sm_100", "tf32", False): _fused(Tile(128, 128, 32, 8, 8, 4), Tile(64, 256, 32, 16, 8, 4)),
    # 99 KiB of shared memory: sm_86, sm_89, sm_120 and whatever comes.
    ("default", "half", True): _fused(Tile(128, 128, 32, 8, 8, 3), Tile(128, 128, 32, 8, 8, 3)),
    ("default", "half", False): _fused(Tile(128, 128, 32, 8, 8, 4), Tile(128, 128, 32, 8, 8, 4)),
    ("default", "tf32", True): _fused(Tile(64, 128, 32, 8, 8, 3), Tile(64, 128, 32, 8, 8, 3)),
    ("default", "tf32", False): _fused(Tile(128, 128, 32, 8, 8, 3), Tile(128, 128, 32, 8, 8, 3)),
}
TABLE |= {
    (architecture, "ieee", small): _IEEE_BLOCKS
    for architecture in ("sm_80", "sm_90", "sm_100", "default")
    for small in (True, False)
}
ARCHITECTURES = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}


def built_in(capability: tuple[int, int] | None, dtype: torch.dtype, width: int) -> Blocks:
    """The row of the table alone."""
    architecture = ARCHITECTURES.get(capability, "default") if capability else "default"
    return TABLE[architecture, arithmetic(dtype), width <= SMALL_WIDTH]


def architecture_of(capability: tuple[int, int]) -> str:
    """Name of a compute capability: sm_90 for (9, 0)."""
    return f"sm_{capability[0]}{capability[1]}"
