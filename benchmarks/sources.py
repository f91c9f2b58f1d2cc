"""Which sources a bench measures; a row is of older code once their digest has changed.

The digest of Python sources is of their statements, in any order and from any file, without
imports, docstrings and comments: moving code leaves rows as they are. Of C++ it is the contents.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

LOSS = (
    *(f"kernels/{files}.py" for files in ("__init__", "launch", "nce_*")),
    "amdim_fast/nce/*.py",
    *(f"csrc/cpu/{files}" for files in ("products.cpp", "score_*", "hand_out.h", "clones.h")),
)
VIEWS = (
    "amdim_fast/views/*.py",
    *(f"csrc/**/*.{suffix}" for suffix in ("h", "cu")),
    *(f"csrc/{name}.cpp" for name in ("library", "cpu/augment", "cpu/records", "cpu/sampling")),
)
MODEL = ("amdim_fast/model/**/*.py", "kernels/residual.py")
STEP = (*LOSS, *VIEWS, *MODEL, *(f"amdim_fast/training/{name}.py" for name in ("step", "graph")))
# By name of a bench; all others measure whole training steps.
FOLDERS: Mapping[str, tuple[str, ...]] = {
    "nce": LOSS,
    "tuning": LOSS,
    "losses": LOSS,
    "aot": ("kernels/*.py",),
    "augment": VIEWS,
    "data": ("amdim_fast/data/*.py",),
    "mixture": (*LOSS, *MODEL),
    "emergence": (*STEP, "amdim_fast/segmentation/*.py"),
}


@functools.cache
def digest(name: str, root: Path = ROOT) -> str:
    """Sixteen hexadecimal digits that name the sources of one bench."""
    paths = {path for pattern in FOLDERS.get(name, STEP) for path in root.glob(pattern)}
    parts = sorted(
        part for path in paths for part in _parts(path.read_text(encoding="utf-8"), path.suffix)
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def stale(row: Mapping[str, Any]) -> bool:
    """Whether a row was measured on other sources than today's, or does not say on which."""
    return row.get("source") != digest(str(row["name"]))


@functools.cache
def _parts(text: str, suffix: str) -> tuple[str, ...]:
    if suffix == ".py":
        return tuple(map(_canonical, _code(ast.parse(text).body)))
    return (text,)


def _code(statements: list[Any]) -> list[Any]:
    """Without imports, and without strings that stand by themselves."""
    return [
        statement
        for statement in statements
        if not isinstance(statement, (ast.Import, ast.ImportFrom))
        and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
    ]


def _canonical(node: Any) -> str:
    """The tree as text, the same from every Python: ``ast.dump`` shows empty fields or does not."""
    if isinstance(node, list):
        return "[" + " ".join(map(_canonical, _code(node))) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    inner = " ".join(f"{name}={_canonical(value)}" for name, value in fields)
    return f"({type(node).__name__} {inner})"
