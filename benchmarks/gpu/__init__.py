"""Everything a GPU is needed for, in parts: ``make gpu``. If one fails, the others still run.

    python -m benchmarks.gpu --parts test bench

Each part is a process with a time limit; the table at the end has one verdict per part.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Folders of tests that use a GPU where there is one: of the loss, and others.
LOSS = ("tests/kernels", "tests/nce", "tests/bench")
OTHERS = ("tests/views", "tests/data", "tests/model")
# Where only tests marked gpu use one.
TRAINING = ("tests/training", "tests/test_devices.py")
SANITIZED = [
    f"tests/{file}::test_small_case_for_the_sanitizer"
    for file in ("views/test_augment_gpu.py", "nce/test_gpu.py")
]


def imported(path: Path) -> set[str]:
    """Packages that a test file imports, those of the helpers it imports from tests/ included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            helper = ROOT / f"{name.replace('.', '/')}.py"
            is_helper = name.startswith("tests.") and helper.exists()
            found |= imported(helper) if is_helper else {name.partition(".")[0]}
    return found


def lacking(folders: tuple[str, ...]) -> dict[str, list[str]]:
    """Test files of the folders that import a package which is not installed -> those packages."""
    found = {}
    for path in sorted(path for folder in folders for path in (ROOT / folder).glob("test_*.py")):
        missing = sorted(name for name in imported(path) if importlib.util.find_spec(name) is None)
        if missing:
            found[str(path.relative_to(ROOT))] = missing
    return found


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _tests(folders: tuple[str, ...]) -> list[str]:
    command = _python("-m", "pytest", "-q", "-W", "default", "--require-gpu", *folders)
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(12, os.cpu_count() or 1))]
    for file, packages in lacking(folders).items():
        print(f"left out: {file}; not installed: {', '.join(packages)}")
        command.append(f"--ignore={file}")
    return command


def _sanitizer(check: str, tests: list[str]) -> list[str] | None:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("left out: compute-sanitizer is not installed")
        return None
    return [tool, "--tool", check, "--error-exitcode=1", *_python("-m", "pytest", "-q", *tests)]


def _bench(name: str) -> list[str]:
    return _python("-m", f"benchmarks.bench_{name}", "--device", "cuda")


# Name -> seconds that it may take, and its command; None where it cannot run here.
PARTS: dict[str, tuple[int, Callable[[], list[str] | None]]] = {
    "test": (90, lambda: _tests(LOSS)),
    "peak": (15, lambda: _python("-m", "benchmarks.gpu.grid", "peak")),
    "bench": (175, lambda: _bench("nce")),
    "largest": (50, lambda: _python("-m", "benchmarks.gpu.grid", "largest")),
    "sanitize": (40, lambda: _sanitizer("memcheck", SANITIZED)),
    "report": (25, lambda: _python("-m", "benchmarks.report")),
    "goals": (15, lambda: _python("-m", "benchmarks.gpu.predictions")),
    "others": (120, lambda: _tests(OTHERS)),
    "races": (30, lambda: _sanitizer("racecheck", SANITIZED[:1])),
    "training": (90, lambda: [*_tests(TRAINING), "-m", "gpu"]),
    "views": (40, lambda: _bench("augment")),
    "step": (190, lambda: _bench("train_step")),
    "digits": (55, lambda: [*_bench("train_step"), "--run"]),
    "large": (570, lambda: _bench("large_batch")),
}
# The loss, in seven minutes at most: is it right, how fast is it, and does that meet the goals.
DEFAULT = ["test", "peak", "bench", "largest", "sanitize", "report", "goals"]


def run_part(name: str) -> str:
    """The verdict of one part."""
    limit, make = PARTS[name]
    print(f"== {name}", flush=True)
    command = make()
    if command is None:
        return "left out"
    started = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    try:
        code = subprocess.run(command, cwd=ROOT, env=environment, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"FAILED: over its {limit} s"
    seconds = time.monotonic() - started
    return f"{'passed' if code == 0 else f'FAILED: exit status {code}'} in {seconds:.0f} s"


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 1 if one failed or there is no GPU."""
    parser = argparse.ArgumentParser(description="Tests and benchmarks that need a GPU.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT)
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("torch finds no CUDA device here; nothing was run", file=sys.stderr)
        return 1
    verdicts = {name: run_part(name) for name in options.parts}
    print("\n".join(f"{name:<10} {verdict}" for name, verdict in verdicts.items()))
    return int(any(verdict.startswith("FAILED") for verdict in verdicts.values()))
