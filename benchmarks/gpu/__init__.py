"""Everything a GPU is needed for, in parts: ``make gpu``. If one fails, the others still run.

    python -m benchmarks.gpu --parts test bench

Each part is a process with a time limit; its verdict is a row, and the table at the end has all.
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
RESULTS = ROOT / "benchmarks" / "results" / "gpu.jsonl"
SUITE = "gpu"  # its rows
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


def _bench(name: str, *options: str) -> list[str]:
    return _python("-m", f"benchmarks.bench_{name}", "--device", "cuda", *options)


# Name -> seconds that it may take, and its command, None where it cannot run here; by value.
PARTS: dict[str, tuple[int, Callable[[], list[str] | None]]] = {
    "build": (55, lambda: _python("setup.py", "--quiet", "build_ext", "--inplace")),
    "test": (90, lambda: _tests(LOSS)),
    "peak": (15, lambda: _python("-m", "benchmarks.gpu.grid", "peak")),
    "bench": (110, lambda: _bench("nce")),
    "step": (95, lambda: _bench("train_step", "--quick")),
    "views": (25, lambda: _bench("augment")),
    "report": (20, lambda: _python("-m", "benchmarks.report")),
    "goals": (10, lambda: _python("-m", "benchmarks.gpu.predictions")),
    "sanitize": (40, lambda: _sanitizer("memcheck", SANITIZED)),
    "races": (30, lambda: _sanitizer("racecheck", SANITIZED[:1])),
    "largest": (50, lambda: _python("-m", "benchmarks.gpu.grid", "largest")),
    "others": (120, lambda: _tests(OTHERS)),
    "training": (90, lambda: [*_tests(TRAINING), "-m", "gpu"]),
    "digits": (55, lambda: _bench("train_step", "--run")),
    "steps": (190, lambda: _bench("train_step")),
    "large": (570, lambda: _bench("large_batch")),
}
# Seven minutes at most: is the loss right, how fast are loss, steps and views, does that meet the
# goals. The others answer questions, by name.
DEFAULT = ["build", "test", "peak", "bench", "step", "views", "report", "goals"]


def capability() -> str:
    """The compute capability of the card that is used, as TORCH_CUDA_ARCH_LIST takes it."""
    import torch

    return ".".join(map(str, torch.cuda.get_device_capability()))


def record_verdict(name: str, verdict: str, seconds: float, out: Path) -> None:
    """Append a row: the seconds that a part took, and its verdict as the note."""
    from benchmarks import harness  # it needs torch, which --help does not

    condition = harness.Condition(SUITE, "cuda-suite", name, "part", {}, "")
    more = {"note": verdict, "clock": harness.WALL}
    harness.record(out, condition, "part_time", "ms", [1e3 * seconds], "cuda", **more)


def run_part(name: str) -> str:
    """The verdict of one part; only the card at hand is built for."""
    limit, make = PARTS[name]
    print(f"== {name}", flush=True)
    command = make()
    if command is None:
        return "left out"
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "TORCH_CUDA_ARCH_LIST": capability(),
    }
    try:
        code = subprocess.run(command, cwd=ROOT, env=environment, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"FAILED: over its {limit} s"
    return "passed" if code == 0 else f"FAILED: exit status {code}"


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 1 if one failed or there is no GPU."""
    parser = argparse.ArgumentParser(description="Tests and benchmarks that need a GPU.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of rows of the verdicts")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("torch finds no CUDA device here; nothing was run", file=sys.stderr)
        return 1
    verdicts, times = {}, {}
    for name in options.parts:
        started = time.monotonic()
        verdicts[name] = run_part(name)
        times[name] = time.monotonic() - started
        record_verdict(name, verdicts[name], times[name], options.out)
    print("\n".join(f"{n:<10} {verdict}, {times[n]:.0f} s" for n, verdict in verdicts.items()))
    return int(any(verdict.startswith("FAILED") for verdict in verdicts.values()))
