"""The CUDA library without a GPU: it compiles with the flags of setup.py, and loads."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

from amdim_fast import optional
from amdim_fast.views import compiled

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")
ARCHITECTURES = ("80", "90", "100")
# Per thread: a plan on the stack, indexed by step, in the thread that makes it; registers for three
# blocks of 256 threads.
BUDGET = {"stack": 128, "spill": 0, "registers": 80}
FUSED = re.compile(r"^\s*(?:@%p\d+ )?(?:fma|mad)\.[.\w]*f(?:16|32|64)\b.*$", re.MULTILINE)

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")


def setup_list(name):
    """A list of flags in setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py assigns no {name}")


def build(folder, architecture, flags, source="augment"):
    """The PTX, and what ptxas says of each kernel."""
    command = [
        *(NVCC, "-cubin", f"-arch=sm_{architecture}", "--resource-usage", *flags),
        *("--keep", f"--keep-dir={folder}", f"-I{ROOT / 'csrc'}"),
        *(f"-I{path}" for path in include_paths("cpu")),
        *(str(ROOT / "csrc" / "cuda" / f"{source}.cu"), "-o", str(folder / "out.cubin")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    (ptx,) = folder.glob("*.ptx")
    return ptx.read_text(), done.stdout + done.stderr


def usage(report):
    """Registers, stack and spilled bytes of each kernel."""
    pattern = (
        r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\s+ptxas info\s+: Used (\d+) registers"
    )
    return {
        name: {"stack": int(stack), "spill": int(stores) + int(loads), "registers": int(registers)}
        for name, stack, stores, loads, registers in re.findall(pattern, report)
    }


@pytest.fixture(scope="module", params=ARCHITECTURES)
def built(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"sm_{request.param}")
    return build(folder, request.param, setup_list("NVCC") + setup_list("STABLE"))


@needs_nvcc
def test_no_product_is_fused_with_a_sum(built):
    ptx, _ = built
    assert ptx.count(".entry") == 4
    assert len(re.findall(r"\b(?:mul|add)(?:\.rn)?\.f(?:32|64)\b", ptx)) > 10
    assert FUSED.findall(ptx) == []


@needs_nvcc
def test_kernels_keep_to_their_registers(built, record_property):
    kernels = usage(built[1])
    assert len(kernels) == 4, built[1]
    for name, used in kernels.items():
        record_property(name, used)
        assert all(used[key] <= limit for key, limit in BUDGET.items()), (name, used)


@needs_nvcc
def test_drawing_fuses_nothing_and_fits_the_arguments_of_a_launch(tmp_path):
    ptx, report = build(tmp_path, "90", setup_list("NVCC") + setup_list("STABLE"), "sampling")
    assert ptx.count(".entry") == 1
    assert FUSED.findall(ptx) == []
    assert len(re.findall(r"\b(?:sqrt|div)\.rn\.f64\b", ptx)) >= 4
    (used,) = usage(report).values()
    assert used["spill"] == 0


@needs_nvcc
def test_the_check_sees_fused_products(tmp_path):
    flags = [flag for flag in setup_list("NVCC") if flag != "-fmad=false"]
    assert len(flags) == len(setup_list("NVCC")) - 1
    ptx, _ = build(tmp_path, "90", flags + setup_list("STABLE"))
    assert len(FUSED.findall(ptx)) > 10


def test_the_host_compiler_may_not_fuse_either():
    assert "-ffp-contract=off" in setup_list("CXX")
    assert not any("fast" in flag for name in ("CXX", "NVCC") for flag in setup_list(name))


@needs_nvcc
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
def test_the_library_is_built_and_registers_without_a_gpu():
    assert compiled.load_cuda(), f"no {optional.FOLDER / '_cuda.so'}: {compiled.HOW_TO_BUILD}"
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("amdim_fast::augment", key)
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("amdim_fast::augment", "MPS")


@needs_nvcc
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
def test_the_library_holds_code_for_each_architecture():
    cuobjdump = Path(NVCC).resolve().parent / "cuobjdump"
    if not cuobjdump.exists():
        import triton

        cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    assert os.access(cuobjdump, os.X_OK), f"no cuobjdump beside nvcc or in triton: {cuobjdump}"
    library = optional.FOLDER / "_cuda.so"
    done = subprocess.run(
        [cuobjdump, "--list-elf", library], capture_output=True, text=True, check=True
    )
    found = set(re.findall(r"\.sm_(\d+)", done.stdout))
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    assert found, done.stdout
    assert chosen or found == set(ARCHITECTURES)
