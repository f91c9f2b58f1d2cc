"""The matrix product with an epilogue against float64, and planted errors in its text."""

import importlib.util
from pathlib import Path

import pytest
import torch
from amdim_fast.kernels import residual
from amdim_fast.kernels.nce_tiles import Tile

from amdim_fast.model.residual import products
from amdim_fast.model.residual.products import ADD, MASK
from tests.nce.cases import DEVICE

DTYPES = [torch.float16]
if DEVICE == "cuda":
    DTYPES.append(torch.bfloat16)  # the interpreter truncates
# Half a unit in the last place, and the rounding of sums in float32.
BOUND = {torch.float16: 2.0**-11 + 1e-5, torch.bfloat16: 2.0**-8 + 1e-5}
POINTERS = Tile(32, 64, 16, 1, 4, 2)
TILES = {
    "pointers": POINTERS,
    "descriptors": POINTERS._replace(descriptors=True),
    "descriptors, bands": POINTERS._replace(descriptors=True, swizzle=2),
    "the device's": None,
}
# M, K, N: one row, off the tiles, on them.
SIZES = [(1, 8, 8), (33, 24, 72), (70, 40, 136), (64, 32, 128)]
EPILOGUES = {"add": ADD, "mask": MASK}


@pytest.fixture(autouse=True)
def around(monkeypatch):
    """Results are made of NaN, at the start of a memory of NaN."""
    empty = torch.empty

    def filled(*shape, **options):
        if not (isinstance(shape[0], tuple) and len(shape[0]) == 2):
            return empty(*shape, **options)
        rows, columns = shape[0]
        return torch.full((rows + 70, columns), torch.nan, **options)[:rows]

    monkeypatch.setattr(torch, "empty", filled)


def use(monkeypatch, way):
    if TILES[way] is not None:
        monkeypatch.setattr(products, "tile_of", lambda _: TILES[way])


def draw(rows, columns, dtype):
    """A matrix with NaN behind it."""
    memory = torch.full((rows + 40, columns), torch.nan, dtype=dtype, device=DEVICE)
    memory[:rows] = torch.randn(rows, columns)
    return memory[:rows]


def draw_all(size, dtype, transposed):
    rows, width, columns = size
    b = draw(columns, width, dtype).t() if transposed else draw(width, columns, dtype)
    return draw(rows, width, dtype), b, draw(rows, columns, dtype)


def expected(a, b, other, epilogue):
    right, wide = a.double() @ b.double(), other.double()
    return right + wide if epilogue == ADD else torch.where(wide <= 0, 0.0, right)


def check(size, dtype=torch.float16, transposed=False, epilogue=ADD):
    a, b, other = draw_all(size, dtype, transposed)
    assert products.takes(a, b, other)
    if epilogue == ADD:  # the sum is much smaller than its terms: it must be rounded once
        other.sub_((a.double() @ b.double()).to(dtype))
    found = products.product(a, b, other, epilogue)
    assert found.dtype == dtype
    assert found._base[len(found) :].isnan().all()
    right = expected(a, b, other, epilogue)
    torch.testing.assert_close(found.double(), right, rtol=BOUND[dtype], atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("way", TILES)
def test_equals_float64(monkeypatch, way, size, transposed, epilogue, dtype):
    use(monkeypatch, way)
    check(size, dtype, transposed, EPILOGUES[epilogue])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("way", ["pointers", "descriptors"])
def test_nan_and_infinity_stay_where_they_are(monkeypatch, way):
    use(monkeypatch, way)
    a, b, other = draw_all((33, 24, 72), torch.float16, False)
    other[3, 5], other[7, 0], other[32, 71], other[0, 1] = torch.nan, torch.inf, -torch.inf, -0.0
    for epilogue in (ADD, MASK):
        found = products.product(a, b, other, epilogue)
        right = expected(a, b, other, epilogue)
        bounds = {"rtol": BOUND[torch.float16], "atol": 1e-4, "equal_nan": True}
        torch.testing.assert_close(found.double(), right, **bounds)
    # The mask is the one of torch, which passes on where the ReLU's result is NaN.
    masked = torch.ops.aten.threshold_backward((a.double() @ b.double()), other.double(), 0)
    torch.testing.assert_close(found.double(), masked, **bounds)
    a[4] = torch.inf
    found = products.product(a, b, other.abs_().add_(1), ADD)
    is_finite = found.isfinite()
    is_finite[3, 5] = is_finite[7, 0] = is_finite[32, 71] = True
    assert not is_finite[4].any()
    assert is_finite[:4].all()
    assert is_finite[5:].all()


def test_a_result_in_the_place_of_what_is_added(monkeypatch):
    use(monkeypatch, "descriptors")
    a, b, other = draw_all((33, 24, 72), torch.float16, False)
    right = products.product(a, b, other, ADD)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: other)
    assert torch.equal(products.product(a, b, other, ADD), right)
    assert torch.equal(other, right)


def test_which_matrices_are_taken(monkeypatch):
    def taken(size=(5, 16, 24), dtype=torch.float16, **changed):
        rows, width, columns = size
        new = {"a": (rows, width), "b": (width, columns), "other": (rows, columns)}
        given = {n: torch.zeros(s, dtype=dtype, device=DEVICE) for n, s in new.items()} | changed
        return products.takes(**given)

    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.float16, device=DEVICE)

    assert taken()
    assert taken(b=zeros(24, 16).t())
    assert taken((1, 16, 24))
    assert not taken((0, 16, 24))
    assert not taken((5, 12, 24))
    assert not taken((5, 16, 20))
    assert not taken(b=zeros(16, 24).bfloat16())
    assert not taken(b=zeros(16, 48)[:, ::2])
    assert not taken(a=zeros(16, 5).t())
    assert not taken(other=zeros(5, 32)[:, :24])
    assert not taken(a=zeros(81)[1:].view(5, 16))
    huge = {
        n: torch.zeros(s, dtype=torch.float16, device="meta")
        for n, s in (("a", (2**31 - 1, 16)), ("b", (16, 24)), ("other", (2**31 - 1, 24)))
    }
    assert not products.takes(**huge)
    for channels, fits in ((24, True), (23, False), (0, False)):
        monkeypatch.setattr(products, "PRODUCT_CHANNELS", channels)
        assert taken() is fits
        assert taken((5, 24, 16)) is fits


MUTANTS = {
    "mask of the other sign": ("there <= 0.0, 0.0, total", "there <= 0.0, total, 0.0"),
    "mask below 0 only": ("there <= 0.0", "there < 0.0"),
    "mask up to 1": ("there <= 0.0", "there <= 1.0"),
    "not added": ("total += there.to(tl.float32)", "total = total"),
    "rounded twice": (
        "total += there.to(tl.float32)",
        "total = total.to(there.dtype).to(tl.float32) + there.to(tl.float32)",
    ),
    "tail of K": ("range(0, width, TILE_WIDTH)", "range(0, width - TILE_WIDTH + 1, TILE_WIDTH)"),
    "entries behind K": ("is_entry = entry < width", "is_entry = entry < width + TILE_WIDTH"),
    "layout of b": ("b.load([start, first_column])", "b.load([first_column, start])"),
    "layout of b by pointer": ("entry[:, None] * columns", "entry[:, None] * width"),
    "transposed b": (".T if TRANSPOSED", ".T + 1 if TRANSPOSED"),
    "rows behind M": ("is_row[:, None] & is_column[None, :]\n    if", "is_column[None, :]\n    if"),
    "columns behind N": (
        "is_row, is_column = row < rows, column < columns",
        "is_row, is_column = row < rows, column < columns + 8",
    ),
    "row of the result": ("out.store([first_row,", "out.store([first_row + 1,"),
    "order": ("column_tile * TILE_COLUMNS", "column_tile * TILE_WIDTH"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mutant", ["", *MUTANTS])
def test_planted_errors_are_caught(monkeypatch, tmp_path, mutant):
    text, wrong = MUTANTS.get(mutant, ("", ""))
    source = Path(residual.__file__).read_text(encoding="utf-8")
    assert source.count(text) == 1 or not text
    path = tmp_path / "residual_with_error.py"
    path.write_text(source.replace(text, wrong) if text else source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("residual_with_error", path)
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    monkeypatch.setattr(products, "residual", changed)

    def run():
        for way in ("pointers", "descriptors"):
            use(monkeypatch, way)
            for transposed in (False, True):
                for epilogue in (ADD, MASK):
                    check((70, 40, 136), transposed=transposed, epilogue=epilogue)
            a, b, other = draw_all((33, 24, 72), torch.float16, False)
            other[:, ::2] = 0
            found = products.product(a, b, other, MASK)
            assert not found[:, ::2].any()

    if not mutant:
        run()
        return
    with pytest.raises((AssertionError, IndexError)):
        run()
