"""The interpreter of these tests, which remembers, is Triton's own but for time."""

import os

import pytest
import torch
from triton.runtime.errors import InterpreterError

from tests.kernels.interpreted_cases import add, results
from tests.processes import start

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="with a GPU the kernels are compiled"
)


def test_same_bits_as_an_interpreter_that_forgets(tmp_path):
    words = ["-m", "tests.kernels.interpreted_cases", tmp_path / "results.pt"]
    with start(words, ".", imported=()) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    expected = torch.load(tmp_path / "results.pt")
    assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))


@pytest.mark.parametrize(("value", "fits"), [(2**31 - 8, True), (2**31 - 1, False)])
def test_sums_that_do_not_fit_are_found(value, fits):
    """In entries that the mask leaves out too, as in Triton's own."""
    out = torch.tensor([1, 2, 3, 7], dtype=torch.int32)
    if fits:
        add[(1,)](out, value, 3)
        assert out.tolist() == [value + 1, value + 2, value + 3, 7]
    else:
        with pytest.raises(InterpreterError, match="int32 overflow detected for operation add"):
            add[(1,)](out, value, 3)


def test_types_and_shapes_stay_apart():
    """Sums of whole numbers, of fractions and of half types, one after the other."""
    for dtype in (torch.float32, torch.int32, torch.float16, torch.int64, torch.float32):
        out = torch.arange(4).to(dtype)
        add[(1,)](out, 2, 4)
        assert torch.equal(out, torch.arange(2, 6).to(dtype))
