"""Fake CUDA tensors of an H100: types, shapes, operations and memory, no results."""

import contextlib

import torch
from amdim_fast.kernels import nce_layout
from torch._subclasses import FakeTensorMode

from amdim_fast.nce import backend, layout, products, triton_arguments, triton_fused
from amdim_fast.nce.op_inputs import Inputs
from tests.nce.launches import Launches, sums_to_float32

IMAGES, WIDTH = 64, 32
NEEDS = [True] * 6
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@contextlib.contextmanager
def fake_gpu(monkeypatch):
    """A context where tensors of CUDA are fake; its value counts what they launch."""
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    monkeypatch.setattr(backend, "_obstacle", lambda device: None)
    for module in (triton_arguments, triton_fused):
        monkeypatch.setattr(module, "capability_of", lambda device: (9, 0))
    monkeypatch.setattr(triton_fused, "strips_of", lambda device, tile, rows, columns: (4, 1))
    monkeypatch.setattr(nce_layout, "loadable", lambda tensor: True)
    monkeypatch.setattr(nce_layout, "descriptors", lambda src, trg, tile: (src, trg))
    monkeypatch.setattr(products, "_adds_in_float32", lambda device: True)
    monkeypatch.setattr(layout, "_layouts", {})
    with FakeTensorMode(), sums_to_float32(), Launches(monkeypatch) as launches:
        yield launches


def inputs(dtype, backend_name, budget=None, clip=20.0, *, images=IMAGES, width=WIDTH):
    """Those of LossMultiNCE, as the op takes them."""

    def new(*shape):
        return torch.empty(shape, dtype=dtype, device="cuda")

    srcs = [new(1, images, width), new(1, images, width)]
    trgs = [new(images, locations, width) for locations in (25, 49, 25, 49)]
    picks = [torch.empty(images, dtype=torch.int64, device="cuda") for _ in range(2)]
    wiring = [0, 0, 1, 1], [2, -1, 0, -1]
    return Inputs(
        srcs, trgs, picks, *wiring, clip, False, 3, 0.5, 0.025, backend_name, "auto", budget
    )
