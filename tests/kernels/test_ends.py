"""Stacked sources, sums over rows, gradients of inputs: the small kernels against torch."""

import itertools

import pytest
import torch

from amdim_fast.nce import torch_passes, triton_ends, triton_passes
from amdim_fast.nce.pairing import Options, Results
from tests.kernels.cases import fill_with_nan
from tests.nce.cases import DEVICE

TYPES = (torch.float32, torch.float16, torch.bfloat16)
IMAGES, LOCATIONS = 5, 4
# Off the tiles of features, on them, and less than one.
WIDTHS = (40, 32, 7)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    fill_with_nan(monkeypatch)
    for name in ("FEATURE_TILE", "SUM_TILE", "SCALE_TILE"):
        monkeypatch.setattr(triton_ends, name, 16)


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def picks():
    return torch.tensor([3, 0, 2, 2, 1], device=DEVICE)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_stack(width, dtype):
    plain = draw(2, IMAGES, width, dtype=dtype)
    other_order = draw(width, IMAGES, 2, dtype=dtype).permute(2, 1, 0)
    maps = draw(IMAGES, LOCATIONS, width, dtype=dtype)
    channels_first = draw(IMAGES, width, LOCATIONS, dtype=dtype).transpose(1, 2)
    for src, trg in itertools.product((plain, other_order), (maps, channels_first)):
        found = triton_passes.stack(src, trg, picks())
        right = [*src.flatten(0, 1), *trg[torch.arange(IMAGES), picks()]]
        assert torch.equal(found, torch.stack(right))
        assert torch.equal(triton_passes.stack(src, None, None), src.flatten(0, 1))


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@pytest.mark.parametrize("images", [1, 16, 37])
def test_sums(images, parts):
    """Sets that count in different parts, and more images than a tile has."""
    rows = [draw(6 * images) for _ in range(2)]
    empty = torch.empty(0, device=DEVICE)
    options = Options(20.0, False, False, parts, 0.7, 0.03)
    found = triton_passes.sum_rows(Results(empty, empty, empty, *rows), options, images)
    wide = Results(empty, empty, empty, *(row.double() for row in rows))
    right = torch_passes.sum_rows(wide, options, images)
    assert [len(value.shape) for value in found] == [1, 1, 1, 0]
    for value, expected in zip(found, right, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("drawn", [False, True])
def test_finish(drawn, width, dtype):
    """Given sources, drawn ones, and either alone."""
    part = draw((2 + drawn) * IMAGES, width)
    there = draw(IMAGES, LOCATIONS, width, dtype=dtype)
    for with_src, with_trg in ((True, drawn), (True, False), *([(False, True)] if drawn else [])):
        out = torch.empty(2, IMAGES, width, dtype=dtype, device=DEVICE) if with_src else None
        trg = there.clone() if with_trg else None
        triton_passes.finish_sources(part, out, trg, picks() if drawn else None)
        if out is not None:
            assert torch.equal(out, rounded(part[: 2 * IMAGES].view(out.shape), dtype))
        if trg is not None:
            right = there.float()
            right[torch.arange(IMAGES), picks()] += part[2 * IMAGES :]
            assert torch.equal(trg, rounded(right, dtype))


def rounded(value, dtype):
    """In the type of the inputs; the interpreter truncates to bfloat16."""
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        return (value.view(torch.int32) & -(2**16)).view(torch.float32).to(dtype)
    return value.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [2.5, 0.0, -1.0])
@pytest.mark.parametrize("count", [1, 16, 37])
def test_scale(count, factor, dtype):
    grads = draw(count, dtype=dtype)
    right = rounded(grads.float() * factor, dtype)
    triton_passes.scale(grads, torch.tensor(factor, device=DEVICE))
    assert torch.equal(grads, right)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_scale_by_one_writes_nothing():
    """Arithmetic would turn signalling NaNs into quiet ones."""
    bits = torch.full((37,), 0x7F80_0001, dtype=torch.int32, device=DEVICE)
    grads = bits.clone().view(torch.float32)
    triton_passes.scale(grads, torch.tensor(1.0, device=DEVICE))
    assert torch.equal(grads.view(torch.int32), bits)
    triton_passes.scale(grads, torch.tensor(2.0, device=DEVICE))
    assert not torch.equal(grads.view(torch.int32), bits)
