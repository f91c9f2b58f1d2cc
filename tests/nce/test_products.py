"""Which library multiplies on which CPU, and its products against float64."""

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


@pytest.mark.parametrize("part_bytes", [64, 300, 2**20])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("library", ["aten", "onednn"])
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 23, 5), (40, 3, 17)], ids=str)
def test_products_into_a_matrix(monkeypatch, size, library, add, part_bytes):
    """In parts that do not divide anything, of matrices that are rows, columns and views."""
    monkeypatch.setattr(products, "_cpu_library", lambda: library)
    monkeypatch.setattr(products, "PART_BYTES", part_bytes)
    rows, inner, columns = size
    a, b = torch.randn(rows, inner), torch.randn(columns, 2 * inner)[:, ::2]
    start = torch.randn(rows, columns)
    right = a.double() @ b.double().T + (start if add else 0)
    given = a, a.T.contiguous().T
    for left in given:
        out = start.clone() if add else torch.full_like(start, torch.nan)
        products.product_into(out, left, b, add=add)
        torch.testing.assert_close(out, right.float())
        out = start.clone() if add else torch.full_like(start, torch.nan)
        products.columns_product_into(out, left.T, b.T, add=add)
        torch.testing.assert_close(out, right.float())
