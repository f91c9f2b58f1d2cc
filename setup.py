"""Maps kernels/ to amdim_fast.kernels and builds csrc/; all else is in pyproject.toml."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import find_packages, setup


def cuda_home() -> str | None:
    """CUDA_HOME, or the toolkit of nvcc, which says where it is even if a script wraps it."""
    nvcc = shutil.which("nvcc")
    if "CUDA_HOME" in os.environ or nvcc is None:
        return os.environ.get("CUDA_HOME")
    dry_run = subprocess.run([nvcc, "--dryrun", "none.cu"], capture_output=True, text=True)
    found = re.search(r"_HERE_=(.*)", dry_run.stderr)
    return str(Path(found.group(1)).parent) if found else None


home = cuda_home()
if home is not None:
    os.environ["CUDA_HOME"] = home
# Without a list, torch builds for the GPU that it finds, and fails if there is none.
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX")

import torch  # noqa: E402
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

HEADERS = [str(path) for path in Path("csrc").rglob("*.h")]
# No product may be fused with a sum: the views are exact to the bit.
CXX = ["-O3", "-std=c++20", "-ffp-contract=off"]
NVCC = ["-O3", "-std=c++20", "-fmad=false", "-DUSE_CUDA"]
# The stable ABI: one build works with torch 2.10 and later.
STABLE = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
common = {"include_dirs": [str(Path("csrc").resolve())], "depends": HEADERS}

extensions = [
    CppExtension(
        "amdim_fast._cpu",
        ["csrc/library.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))],
        extra_compile_args={"cxx": CXX + STABLE},
        py_limited_api=True,
        **common,
    ),
]
with_cuda = home is not None and torch.version.cuda is not None
if with_cuda or os.environ.get("FORCE_CUDA") == "1":
    extensions.append(
        CUDAExtension(
            "amdim_fast._cuda",
            ["csrc/cuda/augment.cu"],
            extra_compile_args={"cxx": CXX + STABLE, "nvcc": NVCC + STABLE},
            py_limited_api=True,
            **common,
        )
    )

setup(
    packages=[*find_packages(include=["amdim_fast", "amdim_fast.*"]), "amdim_fast.kernels"],
    package_dir={"amdim_fast.kernels": "kernels"},
    package_data={"amdim_fast": ["py.typed"]},
    ext_modules=extensions,
    # They are loaded by path, not imported: their names need no suffix.
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
)
