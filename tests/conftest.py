"""Markers and shared fixtures."""

import os
from importlib.util import find_spec
from pathlib import Path

# A compilation cached on disk knows nothing of a changed op.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

import pytest
import torch

# Without a GPU the kernels run in Triton's interpreter, which is chosen when triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    from tests.interpreter import remember

    remember()

GOLDEN = Path(__file__).parent / "golden"
# Begun first, so that no worker is left with one of them at the end.
SLOWEST = (
    *("nce/test_compile", "training/test_resume", "training/test_ranks", "nce/test_group"),
    *("views/test_block_threads", "kernels/test_kernels", "kernels/test_rows", "kernels/test_op"),
    *("benchmarks/test_benches", "kernels/test_aot", "data/test_packing", "data/test_workers"),
)


def pytest_addoption(parser):
    parser.addoption(
        "--require-gpu", action="store_true", help="fail, instead of skipping, without a GPU"
    )


def pytest_collection_modifyitems(config, items):
    places = {GOLDEN.parent / f"{name}.py": place for place, name in enumerate(SLOWEST)}
    for path in places:
        if not path.is_file():
            raise pytest.UsageError(f"SLOWEST names {path}, which is no file; leave it out")
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if torch.cuda.is_available() or config.getoption("--require-gpu"):
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; --require-gpu makes this a failure")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def golden():
    """Folder of recorded outputs of the original code and of Pillow."""
    return GOLDEN


@pytest.fixture(autouse=True, scope="session")
def _cpu_by_default():
    """What names no device runs on the CPU, also where there is a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amdim_fast.devices.default_device", lambda: "cpu")
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
