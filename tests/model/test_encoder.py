from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amdim_fast.model.encoder import Encoder, RKHSHead
from amdim_fast.model.residual.modules import OptionalBatchNorm, ResidualConv

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = (32, 64, 128)
PREFIX = "encoder.module."
GOLDEN_TOLERANCE = 1e-6  # measured 3e-7
_BN = ("bn", 0, 0)
LAYERS = {  # kind, kernel, stride of each layer; "block" holds depth layers, "pad" reflects by 2
    32: [("conv", 3, 1), ("res", 1, 1), ("block", 4, 2), ("block", 2, 2), _BN],
    64: [("conv", 3, 1), ("block", 4, 2), ("block", 4, 2), ("block", 2, 2), _BN],
    128: [("pad", 5, 2), ("conv", 3, 1), ("block", 4, 2), ("block", 4, 2), ("block", 2, 2), _BN],
}
TAIL = [("block", 3, 1), ("block", 3, 1), ("res", 3, 1), ("bn_always", 0, 0)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def public_encoder(size):
    """The encoder of a golden checkpoint, in evaluation mode, and the inputs and outputs."""
    file = torch.load(GOLDEN / f"amdim_public_{size}.pth", weights_only=True)
    hyperparams = file["hyperparams"]
    encoder = Encoder(size, hyperparams["ndf"], hyperparams["n_rkhs"], hyperparams["n_depth"])
    state = {k[len(PREFIX) :]: v for k, v in file["model"].items() if k.startswith(PREFIX)}
    encoder.load_state_dict(state)
    data = np.load(GOLDEN / f"encoder_{size}.npz")
    return encoder.eval(), {name: torch.from_numpy(data[name]) for name in data.files}


def randomise(module, seed=0):
    """Give every weight and statistic a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                scale = 0.2 if value.ndim == 4 else 1.0
                value.copy_(0.5 + noise if name.endswith("running_var") else scale * (noise - 0.4))
    return module


def error_to_golden(encoder, golden):
    with torch.no_grad():
        output = encoder(golden["x"])
    return max((getattr(output, name) - golden[name]).abs().max() for name in ("r1", "r5", "r7"))


def oracle(state, x, size, depth, use_bn):
    """The encoder of the design's table, from a state dict, with functions alone."""

    def norm(name, x, on=use_bn):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.bn.{key}"] for key in keys)) if on else x

    def residual(name, x, kernel, stride):
        hidden = norm(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride))
        branch = F.conv2d(hidden.relu(), state[f"{name}.conv2.weight"])
        if f"{name}.conv3.weight" in state:
            weight, bias = state[f"{name}.conv3.weight"], state[f"{name}.conv3.bias"]
            return branch + F.conv2d(x, weight, bias, stride=stride)
        shortcut = x.unfold(2, kernel, stride).unfold(3, kernel, stride).mean((-2, -1))
        zeros = torch.zeros_like(branch)
        zeros[:, : x.shape[1]] = shortcut
        return branch + zeros

    def head(name, x):
        hidden = norm(f"{name}.bn_hid", F.conv2d(x, state[f"{name}.conv1.weight"])).relu()
        shortcut = F.conv2d(x, state[f"{name}.shortcut.weight"], state[f"{name}.shortcut.bias"])
        return norm(f"{name}.bn_out", F.conv2d(hidden, state[f"{name}.conv2.weight"]) + shortcut, 1)

    maps = {}
    for index, (kind, kernel, stride) in enumerate(LAYERS[size] + TAIL):
        name = f"layer_list.{index}"
        if kind in ("conv", "pad"):
            x = F.pad(x, (2, 2, 2, 2), mode="reflect") if kind == "pad" else x
            weight, bias = state[f"{name}.conv.weight"], state[f"{name}.conv.bias"]
            x = F.conv2d(x, weight, bias, stride=stride).relu()
        elif kind == "res":
            x = residual(name, x, kernel, stride)
        elif kind == "block":
            x = residual(f"{name}.layer_list.0", x, kernel, stride)
            for inner in range(1, depth):
                x = residual(f"{name}.layer_list.{inner}", x, 1, 1)
        else:
            x = norm(name, x, use_bn or kind == "bn_always")
        maps[x.shape[-1]] = x
    return maps[1], head("rkhs_block_5", maps[5]), head("rkhs_block_7", maps[7])


def assert_views(output, d):
    for features, side in ((output.r5, 5), (output.r7, 7)):
        assert features.is_contiguous(memory_format=torch.channels_last)
        rows = features.permute(0, 2, 3, 1).reshape(-1, side * side, d)
        assert rows.data_ptr() == features.data_ptr()
        assert rows.is_contiguous()


@pytest.mark.parametrize("size", SIZES)
def test_public_weights_give_public_features(size):
    assert error_to_golden(*public_encoder(size)) < GOLDEN_TOLERANCE


@pytest.mark.parametrize(
    "planted", ["max_pool", "zero_pad", "wrong_growth", "no_relu", "swapped_heads"]
)
def test_golden_files_catch_planted_errors(planted, monkeypatch):
    encoder, golden = public_encoder(128)
    if planted == "max_pool":
        monkeypatch.setattr(F, "avg_pool2d", F.max_pool2d)
    elif planted == "zero_pad":
        encoder.layer_list[0].conv.padding_mode = "zeros"
    elif planted == "wrong_growth":
        pad = F.pad
        swap = (0, 0, 0, 0)
        monkeypatch.setattr(
            F, "pad", lambda x, p, **k: pad(x, (*swap, p[5], 0) if len(p) == 6 else p, **k)
        )
    elif planted == "no_relu":
        monkeypatch.setattr(F, "relu", lambda x, inplace: x)
    else:
        encoder.rkhs_block_5, encoder.rkhs_block_7 = encoder.rkhs_block_7, encoder.rkhs_block_5
    assert error_to_golden(encoder, golden) > 1e3 * GOLDEN_TOLERANCE


@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize(
    ("size", "ndf", "n_rkhs", "depth"), [(32, 3, 17, 2), (64, 3, 25, 1), (128, 2, 7, 3)]
)
def test_equals_the_table_written_with_functions(size, ndf, n_rkhs, depth, use_bn):
    encoder = randomise(Encoder(size, ndf, n_rkhs, depth, use_bn)).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = encoder.double()(x.double())
        expected = oracle(encoder.state_dict(), x.double(), size, depth, use_bn)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_r7_is_taken_after_the_optional_batch_norm():
    encoder = randomise(Encoder(32, 3, 17, 1, use_bn=True)).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = oracle(encoder.state_dict(), x, 32, 1, True)[2]
        torch.testing.assert_close(encoder(x).r7, expected)
        encoder._layer_7 -= 1
        assert (encoder(x).r7 - expected).abs().max() > 0.01


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_rkhs", [3, 40])
def test_initialisation_is_the_public_one(size, n_rkhs):
    encoder = Encoder(size, 4, n_rkhs, 2)
    for module in encoder.modules():
        if isinstance(module, (ResidualConv, RKHSHead)):
            assert not module.conv2.weight.any()
        if isinstance(module, nn.Conv2d) and module.weight.any():
            bound = (module.in_channels * module.kernel_size[0] ** 2) ** -0.5
            if module not in (encoder.rkhs_block_5.shortcut, encoder.rkhs_block_7.shortcut):
                assert bound / 2 < module.weight.abs().max() <= bound
    for head in (encoder.rkhs_block_5, encoder.rkhs_block_7):
        weight = head.shortcut.weight.detach()[:, :, 0, 0]
        if n_rkhs == 40:
            assert weight.diagonal().eq(1).all()
            rest = weight[~torch.eye(*weight.shape, dtype=torch.bool)]
            assert 0.009 < rest.abs().max() <= 0.01
            assert rest.min() < 0 < rest.max()
        else:
            assert weight.abs().max() > 0.01
            assert not weight.diagonal().eq(1).any()


@pytest.mark.parametrize(
    ("ndf", "n_rkhs", "depth", "millions"),
    [(192, 1536, 8, 194.4), (256, 2048, 10, 401.1), (320, 2560, 10, 626.6)],
)
def test_parameter_counts_of_the_paper(ndf, n_rkhs, depth, millions):
    with torch.device("meta"):
        encoder = Encoder(128, ndf, n_rkhs, depth)
    count = sum(parameter.numel() for parameter in encoder.layer_list.parameters())
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval", "autocast"])
def test_maps_are_channels_last_views(size, use_bn, mode):
    encoder = Encoder(size, 3, 24, 2, use_bn).train(mode != "eval")
    x = torch.randn(2, 3, size, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        output = encoder(x)
    assert output.r5.dtype == (torch.bfloat16 if mode == "autocast" else torch.float32)
    assert [list(features.shape[1:]) for features in output] == [[24, s, s] for s in (1, 5, 7)]
    assert_views(output, 24)


@pytest.mark.parametrize(
    ("size", "ndf", "n_rkhs", "channels"), [(32, 1, 1, 1), (64, 1, 1, 2), (128, 1, 5, 4)]
)
def test_smallest_sizes_work(size, ndf, n_rkhs, channels):
    encoder = Encoder(size, ndf, n_rkhs, 1, in_channels=channels)
    output = encoder(torch.randn(2, channels, size, size))
    assert_views(output, n_rkhs)
    assert_views(encoder.eval()(torch.randn(1, channels, size, size)), n_rkhs)


def test_parameters_stay_channels_last_after_loading():
    encoder, _ = public_encoder(64)
    weight = encoder.layer_list[1].layer_list[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_memory_format_of_the_input_changes_nothing():
    encoder, golden = public_encoder(32)
    channels_last = golden["x"].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for ours, theirs in zip(encoder(golden["x"]), encoder(channels_last), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("use_bn", [False, True])
def test_gradients_reach_every_parameter_in_use(use_bn):
    encoder = randomise(Encoder(32, 3, 11, 2, use_bn))
    output = encoder(torch.randn(4, 3, 32, 32))
    sum((features**3).sum() for features in output).backward()
    unused = {
        f"{name}.bn.{kind}"
        for name, module in encoder.named_modules()
        for kind in ("weight", "bias")
        if isinstance(module, OptionalBatchNorm) and not module.use_bn
    }
    assert bool(unused) != use_bn
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (name not in unused), name
        assert (parameter.grad is None) == (name in unused), name
        if parameter.grad is not None:
            assert parameter.grad.any(), name


def test_unused_batch_norms_never_run():
    encoder = Encoder(32, 2, 8, 1)
    encoder(torch.randn(2, 3, 32, 32))
    for name, module in encoder.named_modules():
        if isinstance(module, OptionalBatchNorm):
            assert int(module.bn.num_batches_tracked) == int(module.use_bn), name


def test_an_export_takes_any_batch():
    encoder, golden = public_encoder(32)
    images = torch.randn(len(golden["x"]) + 1, 3, 32, 32)
    batch = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(encoder, (images,), dynamic_shapes=batch).module()
    for found, name in zip(exported(golden["x"]), ("r1", "r5", "r7"), strict=True):
        assert (found - golden[name]).abs().max() < GOLDEN_TOLERANCE


def test_compiles_without_graph_breaks():
    encoder, golden = public_encoder(32)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    with torch.no_grad():
        for ours, theirs in zip(compiled(golden["x"]), encoder(golden["x"]), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (torch.zeros(2, 3, 64, 64), ValueError, r"\[2, 3, 64, 64\].*\[B, 3, 32, 32\]"),
        (torch.zeros(2, 1, 32, 32), ValueError, r"\[2, 1, 32, 32\].*\[B, 3, 32, 32\]"),
        (torch.zeros(2, 32, 32, 3), ValueError, r"\[2, 32, 32, 3\].*\[B, 3, 32, 32\]"),
        (torch.zeros(3, 32, 32), ValueError, r"\[3, 32, 32\].*\[B, 3, 32, 32\]"),
        (torch.zeros(0, 3, 32, 32), ValueError, "0 images.*2 or more in training"),
        (torch.zeros(1, 3, 32, 32), ValueError, "1 images.*2 or more in training"),
        (torch.zeros(2, 3, 32, 32, device="meta"), ValueError, "meta.*cpu"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, "uint8.*normalized.*float32"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.float64), TypeError, "float64.*float32"),
    ],
)
def test_wrong_inputs_are_named(x, kind, message):
    with pytest.raises(kind, match=f"^x .*{message}"):
        Encoder(32, 2, 8, 1)(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((48, 2, 8, 1), "size is 48; it must be 32, 64 or 128"),
        ((32, 0, 8, 1), "ndf is 0"),
        ((32, 2, 8.0, 1), r"n_rkhs is 8\.0"),
        ((32, 2, 8, True), "depth is True"),
        ((32, 2, 8, 1, False, -3), "in_channels is -3"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Encoder(*arguments)
