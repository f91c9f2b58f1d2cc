"""Maps kernels/ to amdim_fast.kernels and builds csrc/; all else is in pyproject.toml.

AMDIM_FAST_BUILD=0 leaves out the libraries of views, and with them the need of a compiler;
AMDIM_FAST_BUILD=cpu leaves out the one for CUDA.
TORCH_CUDA_ARCH_LIST has the compute capabilities to build for: if not set, those of the GPUs here
or, where there is none, of all that the kernels run on.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from setuptools import find_packages, setup
from setuptools.command.build import build

ASKED = os.environ.get("AMDIM_FAST_BUILD")
VIEWS = ASKED != "0"
ALL_GPUS = "8.0;9.0;10.0+PTX"
HEADERS = [str(path) for path in Path("csrc").rglob("*.h")]
# No product may be fused with a sum: the views are exact to the bit.
CXX = ["-O3", "-std=c++20", "-ffp-contract=off", "-fno-trapping-math"]
NVCC = ["-O3", "-std=c++20", "-fmad=false", "-DUSE_CUDA"]
# The stable ABI: one build works with torch 2.10 and later.
STABLE = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]


def cuda_home() -> str | None:
    """CUDA_HOME, or the toolkit of nvcc, which says where it is even if a script wraps it."""
    nvcc = shutil.which("nvcc")
    if "CUDA_HOME" in os.environ or nvcc is None:
        return os.environ.get("CUDA_HOME")
    dry_run = subprocess.run([nvcc, "--dryrun", "none.cu"], capture_output=True, text=True)
    found = re.search(r"_HERE_=(.*)", dry_run.stderr)
    return str(Path(found.group(1)).parent) if found else None


def check_compiler() -> None:
    """End with one sentence unless views can be compiled here."""
    compiler = os.environ.get("CXX", "c++").split()
    name, obstacle = " ".join(compiler), None
    if not compiler or shutil.which(compiler[0]) is None:
        obstacle = f"there is no C++ compiler {name!r}"
    else:
        probe = [*compiler, "-std=c++20", "-x", "c++", "-fsyntax-only", "-"]
        tried = subprocess.run(probe, input="#include <concepts>", capture_output=True, text=True)
        obstacle = f"{name} does not compile C++20" if tried.returncode else None
    if obstacle is not None:
        sys.exit(
            f"amdim_fast: {obstacle}, which the views need. Install one, such as g++ 10 or later,"
            " or set AMDIM_FAST_BUILD=0 to install without views: the loss needs no compiler."
        )


class Build(build):
    """Looks for the compiler before anything is copied."""

    def run(self) -> None:
        check_compiler()
        super().run()


def capabilities(cuda: ModuleType) -> tuple[str, str]:
    """The compute capabilities to build for, as torch takes them, and where they come from."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return os.environ["TORCH_CUDA_ARCH_LIST"], "as TORCH_CUDA_ARCH_LIST says"
    count = cuda.device_count() if cuda.is_available() else 0
    here = sorted({cuda.get_device_capability(index) for index in range(count)})
    if here:
        return ";".join(f"{major}.{minor}" for major, minor in here), "those of the GPUs here"
    return ALL_GPUS, "all of them, as no GPU is here"


def say(sentence: str) -> None:
    """Say it where the build's output goes; pip shows that with --verbose."""
    print(f"amdim_fast: {sentence}", file=sys.stderr, flush=True)


def views_extensions() -> tuple[list, dict]:
    """The libraries of views, and the command that builds them."""
    home = cuda_home()
    if home is not None:
        os.environ["CUDA_HOME"] = home
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    common = {
        "include_dirs": [str(Path("csrc").resolve())],
        "depends": HEADERS,
        "py_limited_api": True,
    }
    extensions = [
        CppExtension(
            "amdim_fast._cpu",
            ["csrc/library.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))],
            extra_compile_args={"cxx": CXX + STABLE},
            **common,
        ),
    ]
    for_cuda = torch.version.cuda is not None and ASKED != "cpu"
    with_cuda = (home is not None and for_cuda) or os.environ.get("FORCE_CUDA") == "1"
    if with_cuda:
        extensions.append(
            CUDAExtension(
                "amdim_fast._cuda",
                ["csrc/cuda/augment.cu", "csrc/cuda/sampling.cu"],
                extra_compile_args={"cxx": CXX + STABLE, "nvcc": NVCC + STABLE},
                **common,
            )
        )
    listed, whose = capabilities(torch.cuda)
    os.environ["TORCH_CUDA_ARCH_LIST"] = listed  # without it, torch fails where there is no GPU

    # They are loaded by path, not imported: their names need no suffix.
    class BuildViews(BuildExtension.with_options(no_python_abi_suffix=True)):
        def run(self) -> None:
            check_compiler()
            if with_cuda:
                say(f"views are built for CPUs and for compute capabilities {listed}, {whose}")
            elif for_cuda:
                say("views are built for CPUs only, because nvcc, which CUDA needs, is not found")
            elif ASKED == "cpu":
                say("views are built for CPUs only, because AMDIM_FAST_BUILD is cpu")
            super().run()

    return extensions, {"build": Build, "build_ext": BuildViews}


extensions, commands = views_extensions() if VIEWS else ([], {})
if not VIEWS:
    say("views are left out, because AMDIM_FAST_BUILD is 0")

setup(
    packages=[*find_packages(include=["amdim_fast", "amdim_fast.*"]), "amdim_fast.kernels"],
    package_dir={"amdim_fast.kernels": "kernels"},
    package_data={"amdim_fast": ["py.typed"]},
    ext_modules=extensions,
    cmdclass=commands,
)
