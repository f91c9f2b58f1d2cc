"""Which files make what a bench measures: a row is of older code when their digest has changed.

Contents alone count, so a checkout, a shallow clone and an unpacked sdist give one digest.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

LOSS = (
    "kernels/*.py",
    "amdim_fast/ops/nce*.py",
    *(
        f"amdim_fast/ops/{name}.py"
        for name in ("agreement", "backend", "collectives", "half", "plan", "product")
    ),
)
VIEWS = (
    *(f"csrc/**/*.{suffix}" for suffix in ("h", "cpp", "cu")),
    *(f"amdim_fast/ops/{name}.py" for name in ("augment", "compiled", "sampler")),
)
COMPILED = tuple(
    f"kernels/nce_{name}.py" for name in ("backward", "blocks", "forward", "scores", "tiles")
)
# By name of a bench; any other measures all kernels. Without files no row of it grows old.
FILES: Mapping[str, tuple[str, ...]] = {
    "nce": LOSS,
    "tuning": LOSS,
    "augment": VIEWS,
    "mixture": (*LOSS, "amdim_fast/nce/mixture.py"),
    "emergence": (
        *LOSS,
        *VIEWS,
        "amdim_fast/nce/mixture.py",
        "amdim_fast/segmentation/posterior.py",
    ),
    "data": tuple(f"amdim_fast/{n}.py" for n in ("image_sets", "loading", "packed_store")),
    "aot": COMPILED,
    "import": (),
    "coverage": (),
}


def files(name: str, root: Path = ROOT) -> list[Path]:
    """The files behind the rows of one bench, sorted."""
    patterns = FILES.get(name, LOSS + VIEWS)
    return sorted({path for pattern in patterns for path in root.glob(pattern)})


@functools.cache
def digest(name: str, root: Path = ROOT) -> str:
    """Sixteen hexadecimal digits of their contents; empty for a bench without files."""
    found = files(name, root)
    if not found:
        return ""
    return hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()[:16]


def stale(row: Mapping[str, Any]) -> bool:
    """Whether a row was measured on other files than the present ones, or does not say on which."""
    present = digest(str(row["name"]))
    return bool(present) and row.get("source") != present
