"""What residual layers hand to a GPU, counted on fake CUDA tensors."""

import contextlib

import pytest
import torch
from torch._subclasses import FakeTensorMode

from amdim_fast.model.residual import op, passes, products
from tests.nce import launches as counting
from tests.nce.launches import Launches

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
IMAGES, SIDE, CHANNELS, OUT = 4, 10, 16, 32


@pytest.fixture
def launches(monkeypatch):
    """Fake CUDA tensors, and a count of what they launch."""
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    monkeypatch.setattr(passes, "resolve_backend", lambda *_: "triton")
    monkeypatch.setattr(products, "tile_of", lambda _: products.TILES["sm_90"])
    monkeypatch.setattr(
        passes,
        "_zeros",
        lambda length, dtype, device: torch.empty(length, dtype=dtype, device=device),
    )
    # cuDNN, which torch does not find here, keeps channels_last.
    monkeypatch.setattr(
        torch._C, "_conv_determine_backend_memory_format", lambda *_: torch.channels_last
    )
    for name, function in (("forward", op.forward), ("backward", op.backward)):
        monkeypatch.setitem(counting.OPS, f"amdim_fast::residual_{name}", function)
    with FakeTensorMode(), Launches(monkeypatch) as found:
        yield found


def run(launches, layers, kernel, keep_hidden=True, weight_dtype=torch.float32):
    """Launches of a row forward and backward."""
    options = {"device": "cuda", "memory_format": torch.channels_last}

    def new(*shape, dtype=weight_dtype):
        return torch.empty(shape, dtype=dtype, **options)

    channels = OUT if kernel == 1 else CHANNELS
    x = new(IMAGES, channels, SIDE, SIDE, dtype=torch.bfloat16)
    conv1 = [new(OUT, channels, kernel, kernel), *(new(OUT, OUT, 1, 1) for _ in range(layers - 1))]
    conv2 = [new(OUT, OUT, 1, 1) for _ in range(layers)]
    stride = 1 if kernel == 1 else 2
    launches.counts.clear()
    out, *kept = op.forward(x, conv1, conv2, [], stride, keep_hidden, "triton")
    forward = launches.total
    launches.counts.clear()
    grad = torch.empty_like(out)
    needs = [True] * (1 + 2 * layers)
    found = op.backward(grad, x, conv1, conv2, [], *kept, stride, "triton", needs)
    assert [g.dtype for g in found] == [x.dtype] + [weight_dtype] * (2 * layers)
    return forward, launches.total


@pytest.fixture
def library(monkeypatch):
    """Products without a kernel's epilogue."""
    monkeypatch.setattr(products, "PRODUCT_CHANNELS", OUT - 1)


def test_a_layer_takes_two_launches_and_four(launches):
    """Product with ReLU, product with sum; backward four products, with mask and sum."""
    assert run(launches, 1, 1, weight_dtype=torch.bfloat16) == (2, 4)
    assert launches.counts["residual_product"] == 2
    # Later layers of the row, in reverse, own the gradient: the library adds to it.
    assert run(launches, 7, 1, weight_dtype=torch.bfloat16) == (7 * 2, 7 * 4)
    assert launches.counts["residual_product"] == 7 + 1


def test_a_wider_layer_takes_three_launches_and_six(launches, library):
    """Product with ReLU, copy, product added; backward four products, mask, copy."""
    assert run(launches, 1, 1, weight_dtype=torch.bfloat16) == (3, 6)
    assert run(launches, 7, 1, weight_dtype=torch.bfloat16) == (7 * 3, 7 * 5 + 1)


def test_weights_are_rounded_by_one_launch_a_row(launches):
    assert run(launches, 7, 1) == (7 * 2 + 1, 7 * 4)


@pytest.mark.parametrize("channels", [OUT, 0])
def test_a_strided_layer_takes_three_launches_and_six(monkeypatch, launches, channels):
    """Convolution, pool with ReLU, product; two products, mask, two of the convolution, pool."""
    monkeypatch.setattr(products, "PRODUCT_CHANNELS", channels)
    forward, backward = run(launches, 1, 4, weight_dtype=torch.bfloat16)
    of_convolution = 2  # counted as one
    of_mask = 0 if channels else 1
    assert (forward, backward + of_convolution - 1) == (3, 5 + of_mask)


def test_a_hidden_result_that_is_made_again_takes_one_launch_more(launches):
    kept, again = (run(launches, 3, 1, keep_hidden=keep)[1] for keep in (True, False))
    assert again == kept + 3


@pytest.mark.parametrize(
    ("name", "planted", "extra"),
    [
        ("relu_product", lambda a, b: torch.mm(a, b.t()).relu_(), (1, 0)),
        ("masked", lambda grad, hidden: grad * (hidden > 0), (0, 1)),
    ],
)
def test_planted_launches_are_counted(monkeypatch, launches, library, name, planted, extra):
    monkeypatch.setattr(passes, name, planted)
    assert run(launches, 1, 1, weight_dtype=torch.bfloat16) == (3 + extra[0], 6 + extra[1])
