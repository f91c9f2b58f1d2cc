"""Everything a GPU is needed for, in parts that go on when one fails: ``make gpu``.

    python -m benchmarks.gpu --parts test bench

Each part is a process with a time limit; the table at the end has one verdict a part.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.harness import ROOT

# Test files that need a package a GPU machine may lack.
NEEDS = {
    "coverage": ("tests/test_repository_table.py",),
    "matplotlib": ("tests/test_comparison.py",),
    "mlxtend": (
        "tests/test_demo.py",
        "tests/test_distributed.py",
        "tests/test_documents.py",
        "tests/test_emergence.py",
        "tests/test_evaluation.py",
        "tests/test_pretraining.py",
        "tests/test_quality.py",
        "tests/test_resume.py",
    ),
    "PIL": (
        "tests/test_data.py",
        "tests/test_decoding.py",
        "tests/test_documents.py",
        "tests/test_emergence.py",
        "tests/test_evaluation.py",
        "tests/test_loading.py",
        "tests/test_packed_store.py",
        "tests/test_packing.py",
        "tests/test_segment_files.py",
        "tests/test_segmentation.py",
        "tests/test_sheets.py",
    ),
    "safetensors": ("tests/test_evaluation.py", "tests/test_export.py", "tests/test_info.py"),
    "sklearn": ("tests/test_evaluation.py", "tests/test_scoring.py"),
    "torchvision": (
        "tests/test_augment.py",
        "tests/test_augment_calls.py",
        "tests/test_data.py",
        "tests/test_documents.py",
        "tests/test_export.py",
        "tests/test_pixel.py",
        "tests/test_view_draws.py",
    ),
    "yaml": ("tests/test_packaging.py",),
}
SANITIZED = [
    f"tests/test_{op}_gpu.py::test_small_case_for_the_sanitizer" for op in ("augment", "nce")
]


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _tests() -> list[str] | None:
    command = _python("-m", "pytest", "-q", "-W", "default", "--require-gpu")
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    for package, files in NEEDS.items():
        if importlib.util.find_spec(package) is None:
            print(f"left out: {', '.join(files)} ({package} is not installed)")
            command += [f"--ignore={file}" for file in files]
    return command


def _sanitizer(check: str, tests: list[str]) -> list[str] | None:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("left out: compute-sanitizer is not installed")
        return None
    return [tool, "--tool", check, "--error-exitcode=1", *_python("-m", "pytest", "-q", *tests)]


PARTS: dict[str, tuple[int, Callable[[], list[str] | None]]] = {
    "test": (170, _tests),
    "peak": (15, lambda: _python("-m", "benchmarks.nce_grid", "peak")),
    "bench": (150, lambda: _python("-m", "benchmarks.bench_nce", "--device", "cuda")),
    "views": (45, lambda: _python("-m", "benchmarks.bench_augment", "--device", "cuda")),
    "step": (240, lambda: _python("-m", "benchmarks.bench_train_step", "--device", "cuda")),
    "large": (570, lambda: _python("-m", "benchmarks.bench_large_batch", "--device", "cuda")),
    "largest": (60, lambda: _python("-m", "benchmarks.nce_grid", "largest")),
    "sanitize": (40, lambda: _sanitizer("memcheck", SANITIZED)),
    "races": (30, lambda: _sanitizer("racecheck", SANITIZED[:1])),
    "report": (30, lambda: _python("-m", "benchmarks.report")),
}


# Calls of their own for the rest: nine minutes do not hold them.
DEFAULT = [name for name in PARTS if name not in ("step", "large")]


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


if __name__ == "__main__":
    sys.exit(main())
