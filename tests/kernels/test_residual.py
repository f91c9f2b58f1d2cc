"""The kernels of strided residual layers against float64, and planted errors in their text."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from amdim_fast.kernels import residual

from amdim_fast.model.residual import shortcut
from amdim_fast.model.residual.geometry import Geometry, new_map, rows_of
from tests.nce.cases import DEVICE

DTYPES = [torch.float32, torch.float16]
if DEVICE == "cuda":
    DTYPES.append(torch.bfloat16)  # the interpreter truncates
# Images, height and width, channels in and out, kernel, stride.
GEOMETRIES = {
    "4x4, stride 2": Geometry(2, 8, 6, 3, 5, 4, 2),
    "a row is left over": Geometry(2, 9, 7, 4, 4, 2, 2),
    "windows overlap": Geometry(2, 6, 5, 3, 4, 3, 1),
    "windows do not touch": Geometry(2, 8, 8, 3, 4, 2, 3),
    "more than a program": Geometry(3, 12, 12, 66, 130, 4, 2),
    "the whole map": Geometry(3, 3, 3, 5, 7, 3, 1),
    "one pixel": Geometry(1, 1, 1, 1, 1, 1, 1),
}
BOUND = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


def draw(shape, dtype):
    return new_map(torch.empty(0, dtype=dtype, device=DEVICE), shape).copy_(torch.randn(shape))


def check_forward(geometry, dtype):
    x = draw((geometry.batch, geometry.channels, geometry.height, geometry.width), dtype)
    hidden, out = (draw(geometry.out_shape, dtype) for _ in range(2))
    expected = hidden.double().relu()
    right = torch.zeros_like(expected)
    right[:, : geometry.channels] = F.avg_pool2d(x.double(), geometry.kernel, geometry.stride)
    out.fill_(torch.nan)
    shortcut.shortcut(x, rows_of(hidden), out, geometry)
    assert torch.equal(hidden.double(), expected)
    torch.testing.assert_close(out.double(), right, rtol=BOUND[dtype], atol=BOUND[dtype])


def check_backward(geometry, dtype):
    shape = (geometry.batch, geometry.channels, geometry.height, geometry.width)
    there, grad = draw(shape, dtype), draw(geometry.out_shape, dtype)
    x = torch.zeros(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
    F.avg_pool2d(x, geometry.kernel, geometry.stride).backward(
        grad[:, : geometry.channels].double()
    )
    right = there.double() + x.grad
    shortcut.add_shortcut_gradient(there, rows_of(grad), geometry)
    torch.testing.assert_close(there.double(), right, rtol=BOUND[dtype], atol=BOUND[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_pooled_shortcut_and_its_gradient(name, dtype):
    check_forward(GEOMETRIES[name], dtype)
    check_backward(GEOMETRIES[name], dtype)


def test_nan_stays_and_more_pixels_than_an_index_are_refused():
    geometry = GEOMETRIES["4x4, stride 2"]
    x, hidden = draw((2, 3, 8, 6), torch.float32), draw(geometry.out_shape, torch.float32)
    hidden[0, 0, 0, 0] = torch.nan
    shortcut.shortcut(x, rows_of(hidden), torch.empty_like(hidden), geometry)
    assert hidden[0, 0, 0, 0].isnan()
    assert hidden.isnan().sum() == 1
    huge = geometry._replace(batch=2**31)
    with pytest.raises(ValueError, match="it must have at most 2147483647: encode fewer images"):
        shortcut.add_shortcut_gradient(x, rows_of(hidden), huge)


MUTANTS = {
    "sum": (check_forward, "found / (KERNEL * KERNEL)).to(out", "found).to(out"),
    "row of a window": (check_forward, "place // KERNEL * width", "place // KERNEL * out_width"),
    "stride": (check_forward, "column * STRIDE)", "column)"),
    "image": (check_forward, "out_height * height + row", "out_height * out_height + row"),
    "no ReLU": (check_forward, "raw < 0.0", "raw < -1.0"),
    "not added": (check_backward, " + tl.load(there", " + 0 * tl.load(there"),
    "reach": (check_backward, "(KERNEL + STRIDE - 1) // STRIDE  #", "KERNEL // STRIDE  #"),
    "window too long": (check_backward, "row - top * STRIDE < KERNEL", "row >= 0"),
    "first window": (check_backward, "(left >= 0) &", "(left >= 1) &"),
    "last window": (check_backward, "(top < out_height)", "(top < out_height - 1)"),
    "channels of the gradient": (
        check_backward,
        "* out_channels + channel",
        "* channels + channel",
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mutant", ["", *MUTANTS])
def test_planted_errors_are_caught(monkeypatch, tmp_path, mutant):
    check, text, wrong = MUTANTS.get(mutant, (check_forward, "", ""))
    source = Path(residual.__file__).read_text(encoding="utf-8")
    assert text in source
    path = tmp_path / "residual_with_error.py"
    path.write_text(source.replace(text, wrong) if text else source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"residual_{len(mutant)}_{check.__name__}", path)
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    monkeypatch.setattr(shortcut, "residual", changed)

    def run():
        for name in ("windows do not touch", "windows overlap", "more than a program"):
            check(GEOMETRIES[name], torch.float32)

    if not mutant:
        run()
        return
    with pytest.raises((AssertionError, IndexError)):
        run()
