"""Which library multiplies on which CPU, and its products against float64."""

import sys

import pytest
import torch

from amdim_fast import last_plan, nce_loss
from amdim_fast.nce import layout, operands, products
from tests.nce.cases import LIBRARIES, use_library
from tests.processes import run
from tests.threads import torch_threads

# Rows, inner, columns: of a single part, of parts and groups of sums that do not divide anything,
# and of one sum that is cut in strips of columns.
SIZES = ((1, 1, 1), (7, 23, 5), (40, 3, 17), (331, 1500, 70), (2100, 530, 1050))


@pytest.fixture(params=[1, 5])
def threads(request):
    """More threads than cores, too."""
    with torch_threads(request.param):
        yield


@pytest.mark.parametrize(
    ("intel", "capability", "mkl", "onednn", "built", "library"),
    [
        (True, "AVX512", True, True, True, "aten"),
        (True, "AVX2", True, True, True, "aten"),
        (False, "AVX2", True, True, True, "onednn"),
        (False, "AVX512", True, True, True, "onednn"),
        (False, "AVX512", True, True, False, "aten"),
        (False, "AVX512", True, False, True, "aten"),
        (False, "DEFAULT", False, True, True, "onednn"),
        (False, "DEFAULT", False, False, True, "aten"),
    ],
)
def test_the_library_by_the_cpu(monkeypatch, intel, capability, mkl, onednn, built, library):
    monkeypatch.setattr(products, "_is_intel", lambda: intel)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    monkeypatch.setattr(products, "load_cpu", lambda: built)
    assert products._cpu_library.__wrapped__() == library
    assert products._mkl_keeps_up.__wrapped__() == (mkl and capability == "AVX2")


@pytest.fixture
def in_aten(monkeypatch):
    """Products that torch multiplies."""
    multiply_into, found = products.multiply_into, []

    def counting(*given, **options):
        found.append(given)
        multiply_into(*given, **options)

    for module in (products, operands):
        monkeypatch.setattr(module, "multiply_into", counting)
    return found


@pytest.mark.parametrize("keeps_up", [True, False])
@pytest.mark.parametrize("rows", [49, 50])
def test_where_mkl_is_as_wide_long_rows_alone_are_handed_out(monkeypatch, in_aten, keeps_up, rows):
    use_library(monkeypatch, "onednn")
    monkeypatch.setattr(products, "_mkl_keeps_up", lambda: keeps_up)
    monkeypatch.setattr(products, "LEAST_ROWS", 50)
    monkeypatch.setattr(layout, "_layouts", {})
    nce_loss(torch.randn(2, 8, requires_grad=True), torch.randn(rows, 1, 8))[0].backward()
    handed_out = not keeps_up or rows == 50
    assert last_plan().products == ("onednn" if handed_out else "aten")
    # The scores; and the gradient of the sources, whose rows are columns.
    assert len(in_aten) == (not handed_out) + keeps_up


def into(multiply, start, a, b, add):
    """What a product leaves in a matrix that held ``start``, or nothing that it may read."""
    out = start.clone() if add else torch.full_like(start, torch.nan)
    multiply(out, a, b, add=add)
    return out


def assert_as_exact(found, right, whole):
    """No further from float64 than the library's product of the whole, and one rounding more."""
    error, baseline = ((value.double() - right).norm() for value in (found, whole))
    assert error <= baseline + torch.finfo(torch.float32).eps * right.norm()


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_into_a_matrix(monkeypatch, threads, size, library, add):
    """Of matrices that are rows, columns and views, into one that is part of a wider one."""
    use_library(monkeypatch, library)
    rows, inner, columns = size
    a, b = torch.randn(rows, inner), torch.randn(columns, 2 * inner)[:, ::2]
    start = torch.randn(rows, columns + 3)[:, :columns]
    before = start if add else 0
    right, packed = a.double() @ b.double().T, products.packed(b, len(a))
    if library == "onednn":
        whole = torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")
    else:
        whole = a @ b.T
    assert_as_exact(products.product(a, packed), right, whole)
    for left in (a, a.T.contiguous().T):
        found = into(products.product_into, start, left, packed, add)
        assert_as_exact(found, right + before, whole + before)
        found = into(products.columns_product_into, start, left.T, b.T, add)
        assert_as_exact(found, right + before, whole + before)
        assert torch.equal(found, into(products.columns_product_into, start, left.T, b.T, add))


@pytest.mark.parametrize("library", LIBRARIES)
def test_only_large_products_are_handed_out(monkeypatch, in_aten, library):
    """Those of a loss are all of 7 * 63 * 8 multiplications."""
    large = library == "onednn"
    use_library(monkeypatch, "onednn")
    monkeypatch.setattr(products, "LEAST_ONEDNN", 7 * 63 * 8 + (not large))
    monkeypatch.setattr(layout, "_layouts", {})
    src, trg = torch.randn(7, 8, requires_grad=True), torch.randn(7, 9, 8, requires_grad=True)
    sum(nce_loss(src, trg)).backward()
    assert products.packed(src.detach(), 63).is_mkldnn == large
    assert len(in_aten) == (0 if large else 3)
    assert last_plan().products == library


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("part_bytes", [64, 300, 2**20])
def test_products_into_half_types(monkeypatch, library, add, part_bytes):
    """Rounded once, some rows at a time."""
    use_library(monkeypatch, library)
    monkeypatch.setattr(products, "PART_BYTES", part_bytes)
    a, b, start = torch.randn(23, 7), torch.randn(5, 7), torch.randn(23, 5).bfloat16()
    right = a.double() @ b.double().T + (start if add else 0)
    found = into(products.product_into, start, a, products.packed(b, len(a)), add)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), right, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_products_without_autograd_and_of_leaves(monkeypatch, threads, library):
    """Threads of their own know of neither."""
    use_library(monkeypatch, library)
    with torch.inference_mode():
        a, b = torch.randn(700, 80), torch.randn(60, 80)
        plain = a.clone(), b.clone()
        inferred = products.product(a, products.packed(b, len(a)))
        of_columns = into(products.columns_product_into, torch.zeros(80, 80), a, a, True)
    a, b = plain[0].clone().requires_grad_(), plain[1].clone()
    with torch.no_grad():
        found = products.product(a, products.packed(b, len(a)))
    assert not found.requires_grad
    assert torch.equal(found, inferred)
    right = plain[0].double().T @ plain[0].double()
    torch.testing.assert_close(of_columns.double(), right, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif("onednn" not in LIBRARIES, reason="the op calls oneDNN")
@pytest.mark.parametrize("name", ["rows_product_", "columns_product_"])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(4, 6), "out must have the shape of the product"),
        (torch.zeros(4, 5, dtype=torch.float64), "out must be float32, its columns side by side"),
        (torch.zeros(5, 4).T, "out must be float32, its columns side by side"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(name, out, message):
    a, b = torch.ones(4, 3), torch.ones(5, 3)
    factors = (a, b) if name == "rows_product_" else (a.T, b.T)
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.amdim_fast, name)(out, *factors, False)
    assert not out.any()


MEMORY = """
import sys, torch
from pathlib import Path
from amdim_fast.nce import products
torch.set_num_threads(int(sys.argv[1]))
products._cpu_library = lambda: "onednn"
products._mkl_keeps_up = lambda: False
products.has_onednn()  # loads the library
def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])
a, b, out = torch.ones(30_000, 500), torch.ones(30_000, 300), torch.ones(500, 300)
rows, weight = torch.ones(30_000, 300), products.packed(torch.ones(300, 500), 30_000)
multiply = {
    "columns": lambda: products.columns_product_into(out, a, b, add=True),
    "rows": lambda: products.product_into(rows, a, weight, add=True),
}
multiply[sys.argv[2]]()  # what a library keeps for good
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
multiply[sys.argv[2]]()
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.skipif("onednn" not in LIBRARIES, reason="MKL writes where it is told to")
@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_products_take_little_memory(tmp_path, threads, kind):
    """Nothing as large as a factor, 36 MB or more; with many threads somewhat more."""
    done = run(["-c", MEMORY, threads, kind], tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24_000
