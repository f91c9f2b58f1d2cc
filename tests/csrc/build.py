"""Compiles the C++ files of this folder against csrc/, once for each state of the sources."""

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "tests"
FLAGS = (
    "-std=c++20",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Werror",
    f"-I{CSRC}",
)


def build(name, *flags):
    """Path of ``name``.cpp compiled with these flags; reused while no source or flag changes."""
    source = Path(__file__).with_name(f"{name}.cpp")
    compiler = os.environ.get("CXX", "g++")
    assert shutil.which(compiler), f"{compiler} is not on the PATH: {source.name} needs GCC 11"
    command = [compiler, *FLAGS, *flags, str(source)]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256("\0".join(command).encode() + version)
    for path in (source, *sorted(CSRC.rglob("*.h"))):
        digest.update(path.read_bytes())
    made = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            unfinished = Path(folder) / name
            done = subprocess.run(
                [*command, "-o", str(unfinished)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
            unfinished.replace(made)
    return made


def load_pixel():
    """The pybind11 module of pixel.cpp."""
    import pybind11

    includes = (pybind11.get_include(), sysconfig.get_path("include"))
    made = build(
        "pixel",
        *("-O3", "-shared", "-fPIC", "-fvisibility=hidden"),
        *(f"-isystem{path}" for path in includes),
    )
    loader = importlib.machinery.ExtensionFileLoader("pixel", str(made))
    spec = importlib.util.spec_from_loader("pixel", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
