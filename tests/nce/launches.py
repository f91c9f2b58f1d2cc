"""What a call hands to the device, counted without one: torch operations and kernels."""

import contextlib
import gc
import sys
from collections import Counter

import pytest
import torch
from amdim_fast.kernels import launch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amdim_fast.nce import op_kernels

OPS = {
    "amdim_fast::nce_forward": op_kernels.forward,
    "amdim_fast::nce_backward": op_kernels.backward,
    "amdim_fast::nce_objective": op_kernels.objective,
    "amdim_fast::nce_scale_": op_kernels.scale,
}
# Reserve memory or read a shape; everything else that is no view runs on the device.
FREE = {
    "prim::device",
    "aten::empty",
    "aten::new_empty",
    "aten::empty_like",
    "aten::detach",
    "aten::empty_strided",
}
# Checks of values, for tensors on a CPU only.
CHECKS = {"aten::ge", "aten::lt", "aten::all", "aten::bitwise_and", "aten::bitwise_not"}
CHECKS |= {"aten::__and__", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::ne"}


@contextlib.contextmanager
def sums_to_float32():
    """Before torch 2.12 or so a fake addmm with ``out_dtype`` fails: its place is taken."""
    aten = torch.ops.aten
    try:
        fake = torch.empty(2, 2, dtype=torch.bfloat16, device="cuda")
        torch.addmm(fake.float(), fake, fake, out_dtype=torch.float32)
    except TypeError:
        pass
    else:
        yield
        return

    def added(total, a, b, out_dtype, **_):
        assert (a.shape[1], total.shape) == (b.shape[0], (a.shape[0], b.shape[1]))
        return a.new_empty(total.shape, dtype=out_dtype)

    def added_to(total, a, b, out_dtype, *, out, **_):
        assert added(total, a, b, out_dtype).dtype == out.dtype
        return out

    with (
        pytest.MonkeyPatch.context() as patch,
        torch.library._scoped_library("aten", "IMPL") as library,
    ):
        for name, kernel in (("dtype", added), ("dtype_out", added_to)):
            overload = getattr(aten.addmm, name)
            patch.delitem(torch._decomp.decomposition_table, overload)
            library.impl(overload, kernel, "Meta", allow_override=True)
        yield


class Launches(TorchDispatchMode):
    """Counts what runs on the device, inside the ops too; kernels are counted, not run."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.counts = Counter()
        monkeypatch.setattr(launch, "launch", self._launch)

    def _launch(self, kernel, grid, *arguments, **constants):
        self.counts[kernel.__name__] += 1

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._schema.name
        if name in OPS:
            with self:
                return OPS[name](*arguments, **(options or {}))
        result = function(*arguments, **(options or {}))
        shares = function.is_view and all(map(same_memory(arguments[0]), tree_leaves(result)))
        if name not in FREE | CHECKS and not shares:
            self.counts[name] += 1
        return result

    @property
    def total(self):
        return sum(self.counts.values())


def same_memory(tensor):
    """Whether another tensor is in the memory of this one; ``contiguous`` may or may not be."""
    storage = tensor.untyped_storage()._cdata
    return lambda other: other.untyped_storage()._cdata == storage


def python_calls(function):
    """Python functions that ``function()`` enters; not those of a garbage collection."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call"

    gc.disable()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count
