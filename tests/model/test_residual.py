"""A row of residual layers as one op: values and gradients, and what it works with."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from amdim_fast.model.encoder import Encoder
from amdim_fast.model.residual import modules, passes, products
from amdim_fast.model.residual.modules import ResidualBlock
from amdim_fast.model.residual.op import OPS, residual_layers
from tests.model.residual_cases import MARGIN, ROWS, draw, errors, ours, results, truth, written_out
from tests.nce.cases import DEVICE

BACKENDS = ("torch", "triton")
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter truncates bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ROWS)
def test_equals_the_layers_written_out(name, backend):
    row = ROWS[name]
    dtype = torch.float32 if backend == "triton" else torch.float64
    tensors = draw(row, dtype)
    right = truth(row, *tensors)
    for keep_hidden in (True, False):
        found = ours(row, *tensors, backend=backend, keep_hidden=keep_hidden)
        assert max(errors(found, right)) < (1e-6 if dtype == torch.float32 else 1e-14)
        assert all(value.is_contiguous(memory_format=torch.channels_last) for value in found[:2])


@pytest.mark.parametrize("weight_dtype", [torch.float32, HALF])
@pytest.mark.parametrize("name", ROWS)
def test_half_types_are_as_exact_as_eager(name, weight_dtype):
    """Every result; gradients of float32 weights are not rounded to the half type."""
    row = ROWS[name]
    tensors = draw(row, HALF, weight_dtype)
    found = ours(row, *tensors, backend="triton")
    assert [value.dtype for value in found] == [HALF] * 2 + [weight_dtype] * (len(found) - 2)
    x, *weights, grad = draw(row, HALF)
    eager = results(lambda *t: written_out(*t, row.stride), (x, *weights), grad)
    right = truth(row, *tensors)
    for ours_error, eager_error in zip(errors(found, right), errors(eager, right), strict=True):
        assert ours_error < MARGIN * eager_error + 1e-4


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("relu_product", lambda a, b: a @ b.t()),
        ("masked", lambda grad, hidden: grad),
        ("masked", lambda grad, hidden: grad * (hidden >= 0.5)),
        ("shortcut", lambda x, hidden, geometry, backend: passes.new_map(x, geometry.out_shape)),
        ("add_shortcut_gradient", lambda grad_x, grad, geometry, backend: None),
        ("rounded", lambda weights, dtype: [w.detach().flip(0) for w in weights]),
    ],
)
def test_planted_errors_are_caught(monkeypatch, name, planted):
    monkeypatch.setattr(passes, name, planted)
    row = ROWS["4x4, stride 2"]
    tensors = draw(row, torch.float32)
    found = ours(row, *tensors, backend="torch", keep_hidden=False)
    assert not max(errors(found, truth(row, *tensors))) < 1e-3


@pytest.fixture
def multiplied(monkeypatch):
    """Epilogues of the products that a kernel ended."""
    found, product = [], products.product

    def noted(a, b, other, epilogue):
        found.append("add" if epilogue == products.ADD else "mask")
        return product(a, b, other, epilogue)

    monkeypatch.setattr(products, "product", noted)
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1x1, whole units", ["add"] * 3 + ["mask", "add"] + ["mask"] * 2),
        ("4x4, stride 2, whole units", ["add"] * 2 + ["mask", "add"] + ["mask"] * 2),
        ("a head, whole units", ["mask"]),
        ("1x1", []),
    ],
)
def test_a_kernel_ends_products_of_half_types_up_to_a_width(
    monkeypatch, multiplied, name, expected
):
    row = ROWS[name]
    tensors = draw(row, HALF, torch.float32)
    ours(row, *tensors, backend="triton")
    assert multiplied == expected
    multiplied.clear()
    ours(row, *draw(row, torch.float32), backend="triton")
    if DEVICE == "cpu":
        ours(row, *tensors, backend="torch")
    for fewer in (row.out_channels - 1, 0):
        monkeypatch.setattr(products, "PRODUCT_CHANNELS", fewer)
        ours(row, *tensors, backend="triton")
    assert multiplied == []


@pytest.mark.parametrize("wrong", ["add", "mask"])
def test_planted_errors_in_epilogues_are_caught(monkeypatch, wrong):
    row = ROWS["1x1, whole units"]
    tensors = draw(row, HALF)
    product = products.product
    planted = {
        "add": lambda a, b, other, epilogue: product(a, b, 0 * other, epilogue),
        "mask": lambda a, b, other, epilogue: product(a, b, 1 + other, epilogue),
    }[wrong]
    epilogue = {"add": products.ADD, "mask": products.MASK}[wrong]
    monkeypatch.setattr(
        products, "product", lambda *given: (planted if given[3] == epilogue else product)(*given)
    )
    found = ours(row, *tensors, backend="triton")
    assert max(errors(found, truth(row, *tensors))) > 1e-2


@pytest.mark.parametrize("name", ["1x1", "4x4, stride 2", "3x3 covers the map", "a head"])
@pytest.mark.parametrize("keep_hidden", [False, True])
def test_only_the_gradients_that_are_wanted(name, keep_hidden):
    row = ROWS[name]
    x, conv1, conv2, shortcut, grad = draw(row, torch.float64)
    right = truth(row, x, conv1, conv2, shortcut, grad)
    flat = [x, *conv1, *conv2, *shortcut]
    for wanted in range(len(flat)):
        for number, tensor in enumerate(flat):
            tensor.requires_grad_(number == wanted)
        out = residual_layers(
            *(x, conv1, conv2, shortcut),
            stride=row.stride,
            keep_hidden=keep_hidden,
            backend="torch",
        )
        (found,) = torch.autograd.grad(out, flat[wanted], grad)
        torch.testing.assert_close(found, right[1 + wanted])


# torch's own dynamic-shape check reads .grad of a tensor that is not a leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("1x1", "torch"),
        ("2x2, stride 2, a row is left over", "torch"),
        ("a head", "torch"),
        ("1x1, whole units", "triton"),
    ],
)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float16])
def test_opcheck(name, backend, weight_dtype):
    row = ROWS[name]
    x, conv1, conv2, shortcut, _ = draw(row, torch.float32)
    if weight_dtype != x.dtype:
        x = x.detach().to(weight_dtype).requires_grad_()
    for keep_hidden in (True, False):
        arguments = (x, conv1, conv2, shortcut, row.stride, keep_hidden, backend)
        torch.library.opcheck(OPS.residual_forward.default, arguments)


def test_other_layouts_no_images_and_a_second_backward():
    row = ROWS["3x3"]
    x, conv1, conv2, _, grad = draw(row, torch.float64)
    right = truth(row, x, conv1, conv2, [], grad)
    weights = [[w.detach().contiguous().requires_grad_() for w in part] for part in (conv1, conv2)]
    tensors = [x, *weights[0], *weights[1]]
    out = residual_layers(x, *weights, stride=row.stride, backend="torch")
    strided = grad.transpose(2, 3).contiguous().transpose(2, 3)
    for upstream in (grad.contiguous(), strided):
        found = torch.autograd.grad(out, tensors, upstream, retain_graph=True)
        assert max(errors(found, right[1:])) < 1e-14
    (expanded,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    torch.testing.assert_close(expanded, torch.autograd.grad(out, x, torch.ones_like(out))[0])
    none = residual_layers(
        x[:0].float(), *draw(row, torch.float32)[1:3], stride=1, backend="triton"
    )
    assert none.shape == (0, *grad.shape[1:])


def test_second_derivative_is_refused_in_one_sentence():
    row = ROWS["1x1"]
    x, conv1, conv2, *_ = draw(row, torch.float64)
    out = residual_layers(x, conv1, conv2, stride=1, backend="torch")
    with pytest.raises(RuntimeError, match="a second derivative is not supported; backend='torch'"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


@pytest.mark.parametrize("name", ["4x4, stride 2", "4x4, stride 2, whole units"])
def test_same_bits_in_every_run(name):
    row = ROWS[name]
    tensors = draw(row, HALF, torch.float32)
    first, second = (ours(row, *tensors, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def block(backend, n_out=5, use_bn=False):
    """A block of three layers whose second convolutions are not 0."""
    made = ResidualBlock(3, n_out, 4, 2, 3, use_bn).to(DEVICE)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    for layer in made.layer_list:
        layer.backend = backend
    return made.to(memory_format=torch.channels_last)


def calls_of_the_op(monkeypatch):
    found = []
    op = modules.residual_layers

    def counted(*arguments, **options):
        found.append(len(arguments[1]))
        return op(*arguments, **options)

    monkeypatch.setattr(modules, "residual_layers", counted)
    return found


def run(made, x):
    """The result and the gradients of parameters."""
    out = made(x)
    parameters = [p for p in made.parameters() if p.requires_grad]
    return [out.detach(), *torch.autograd.grad(out.float().square().mean(), parameters)]


def test_a_block_is_one_op_with_the_plain_results(monkeypatch):
    x = torch.randn(2, 3, 10, 10, device=DEVICE)  # not channels_last
    right = run(block("torch"), x)
    calls = calls_of_the_op(monkeypatch)
    assert max(errors(run(block("triton"), x), [value.double() for value in right])) < 1e-6
    assert calls == [3]


@pytest.mark.parametrize(
    "reason", ["batch norm", "narrower", "hook", "hook of a convolution", "list", "replaced"]
)
def test_layers_run_one_by_one_where_an_op_would_pass_over_something(monkeypatch, reason):
    x = torch.randn(4, 3, 10, 10, device=DEVICE)
    options = {"narrower": {"n_out": 2}, "batch norm": {"use_bn": True}}.get(reason, {})
    made, plain = (block(backend, **options) for backend in ("triton", "torch"))
    seen, calls = [], calls_of_the_op(monkeypatch)
    hooked = {
        "hook": made.layer_list[1],
        "hook of a convolution": made.layer_list[1].conv2,
        "list": made.layer_list,
    }.get(reason)
    if hooked is not None:
        hooked.register_forward_hook(lambda *_: seen.append(1))
    if reason == "replaced":
        other = type("Other", (nn.Conv2d,), {})(5, 5, 1, bias=False)
        other.weight, made.layer_list[2].conv1 = made.layer_list[2].conv1.weight, other
    right = [value.double() for value in run(plain, x)]
    assert max(errors(run(made, x), right)) < 1e-5
    assert 3 not in calls
    assert len(seen) == (hooked is not None)


def test_hidden_results_over_the_limit_are_made_again(monkeypatch):
    x = torch.randn(2, 3, 10, 10, device=DEVICE)
    right = run(block("triton"), x)
    made, given = [], passes.relu_product
    monkeypatch.setattr(passes, "relu_product", lambda a, b: (made.append(1), given(a, b))[1])
    monkeypatch.setattr(modules, "KEEP_BYTES", 2 * 5 * 16 * 3 * 4 - 1)
    found = run(block("triton"), x)
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
    assert len(made) == 4  # two layers, forward and again in the backward


@pytest.mark.parametrize("n_out", [5, 8])
def test_autocast_and_recomputation(monkeypatch, multiplied, n_out):
    calls = calls_of_the_op(monkeypatch)
    x = torch.randn(2, 3, 10, 10, device=DEVICE)
    made = block("triton", n_out)
    with torch.autocast(DEVICE, torch.float16):
        right = run(made, x)
        assert right[0].dtype == torch.float16
        out = checkpoint(made, x, use_reentrant=False)
    parameters = [p for p in made.parameters() if p.requires_grad]
    found = torch.autograd.grad(out.float().square().mean(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(found, right[1:], strict=True))
    assert calls == [3] * 3
    # Two layers three times, and two backwards of three masks and a first sum.
    assert len(multiplied) == (0 if n_out == 5 else 3 * 2 + 2 * 4)


def test_float64_is_not_rounded_by_autocast():
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert modules.product_dtype(x) == torch.float64
        assert modules.product_dtype(x.float()) == torch.bfloat16


def test_weights_of_one_half_type_and_a_map_of_the_other():
    row = ROWS["a head"]
    x, *lists, grad = draw(row, torch.float32)
    lists = [[w.detach().bfloat16().requires_grad_() for w in part] for part in lists]
    x, grad = x.detach().half().requires_grad_(), grad.half()
    found = ours(row, x, *lists, grad, backend="torch")
    assert [value.dtype for value in found] == [torch.float16] * 2 + [torch.bfloat16] * 4
    assert max(errors(found, truth(row, x, *lists, grad))) < 1e-2


@pytest.mark.parametrize("half", [False, True])
def test_fullgraph_compile_gives_the_same_bits(half):
    x = torch.randn(2, 3, 10, 10, device=DEVICE)
    made = block("triton", 8 if half else 5)
    with torch.autocast(DEVICE, torch.float16, enabled=half):
        right = run(made, x)
        found = run(torch.compile(made, fullgraph=True), x)
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_backend_of_an_encoder():
    encoder = Encoder(32, 4, 8, 2, backend="triton")
    assert {layer.backend for layer in layers_of(encoder)} == {"triton"}
    encoder.backend = "torch"
    assert {layer.backend for layer in layers_of(encoder)} == {"torch"}
    with pytest.raises(
        ValueError, match="backend is 'fast'; it must be one of auto, torch, triton"
    ):
        encoder.backend = "fast"
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    encoder.backend = "auto"
    expected = {(cuda, torch.bfloat16): "triton", (cuda, torch.float16): "triton"}
    for device in (cuda, cpu):
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            found = encoder.backend_for(dtype, device)
            assert found == expected.get((device, dtype), "torch")
    assert Encoder(32, 4, 8, 2, use_bn=True).backend_for(torch.bfloat16, cuda) == "torch"


def layers_of(encoder):
    return [m for m in encoder.modules() if isinstance(m, modules.ResidualConv)]
