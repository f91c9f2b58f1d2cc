"""Which backend runs, and what is said where the kernels cannot."""

import pytest
import torch

from amdim_fast.nce.backend import _warn_once, resolve_backend
from tests.forked import TORCH
from tests.processes import run


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ("", "the tensors are on cpu; its kernels run on a GPU, or on the CPU in Triton's"),
        ("import sys; sys.modules['triton'] = None; ", "the package triton is not installed"),
    ],
)
def test_triton_where_it_cannot_run(setup, message):
    code = setup + (
        "import torch, amdim_fast\n"
        "try: amdim_fast.nce_loss(torch.ones(2, 3), torch.ones(2, 1, 3), backend='triton')\n"
        "except ValueError as error: print(error)"
    )
    done = run(["-c", code], ".", variables={"TRITON_INTERPRET": None}, imported=TORCH)
    assert message in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1


def test_rocm(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(ValueError, match="this torch is built for ROCm and the kernels are tested"):
        resolve_backend("triton", torch.float32, torch.device("cuda:0"))


def test_old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    device = torch.device("cuda:0")
    sentence = r"cuda:0 has compute capability 7\.5 and the kernels need 8\.0 or"
    _warn_once.cache_clear()
    with pytest.warns(UserWarning, match=f"'auto' is 'torch' here: {sentence}"):
        resolve_backend("auto", torch.float32, device)
    assert resolve_backend("auto", torch.float32, device) == "torch"  # without another warning
    with pytest.raises(ValueError, match=sentence):
        resolve_backend("triton", torch.float32, device)
    assert resolve_backend("torch", torch.float32, device) == "torch"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_auto_is_triton_on_a_gpu(monkeypatch, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device("cuda:0")
    assert resolve_backend("triton", dtype, device) == "triton"
    assert resolve_backend("auto", dtype, device) == "triton"
    assert resolve_backend("torch", dtype, device) == "torch"
    assert resolve_backend("auto", torch.float64, device) == "torch"
    assert resolve_backend("auto", dtype, torch.device("cpu")) == "torch"
