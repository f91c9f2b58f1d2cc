"""Which library multiplies on which CPU."""

import pytest
import torch

from amdim_fast.nce import products


@pytest.mark.parametrize(
    ("intel", "capability", "mkl", "onednn", "library"),
    [
        (True, "AVX512", True, True, "aten"),
        (True, "AVX2", True, True, "aten"),
        (False, "AVX2", True, True, "aten"),
        (False, "AVX512", True, True, "onednn"),
        (False, "AVX512", True, False, "aten"),
        (False, "DEFAULT", False, True, "onednn"),
        (False, "DEFAULT", False, False, "aten"),
    ],
)
def test_the_library_by_the_cpu(monkeypatch, intel, capability, mkl, onednn, library):
    monkeypatch.setattr(products, "_is_intel", lambda: intel)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert products._cpu_library.__wrapped__() == library
