"""The registered augmentation ops: schema, fake, torch.compile, bad input, not built."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from amdim_fast.views import augment as augmentation
from amdim_fast.views import compiled, sampling
from amdim_fast.views.augment import augment
from amdim_fast.views.op import RECORD_WORDS
from amdim_fast.views.params import POLICIES, ViewParams
from amdim_fast.views.preprocessing import center_view
from amdim_fast.views.two_views import TwoViews
from tests.forked import TORCH
from tests.processes import run
from tests.views.cases import HALF, any_params, plain, white_noise

ROOT = Path(__file__).resolve().parents[2]
SIZES = torch.tensor([[20, 31]] * 3)
WINDOW = torch.tensor([8, 8, 0, 0], dtype=torch.int32)


@pytest.fixture(autouse=True)
def _forget_compilations():
    yield
    torch.compiler.reset()


def images(count=3):
    return torch.stack([white_noise(20, 31, seed) for seed in range(count)])


def test_opcheck_draw_views():
    values = sampling._policy_values(POLICIES["cifar"])
    for index in (None, torch.tensor([7, 2**40, 0])):
        torch.library.opcheck(
            torch.ops.amdim_fast.draw_views.default,
            (SIZES, index, values, 2),
            test_utils=("test_schema", "test_faketensor"),
        )


def values(params):
    return [getattr(params, field.name) for field in fields(ViewParams)]


def op_arguments(dtype=torch.float32, channels_last=False, packed=False):
    records = torch.ops.amdim_fast.pack_views(*values(any_params(SIZES.tolist())), SIZES, WINDOW)
    table = torch.rand(3, 256).to(dtype)
    if packed:
        offset = torch.arange(3)[:, None] * 20 * 31 * 3
        return (
            images().flatten(),
            torch.cat([offset, SIZES], 1),
            records,
            table,
            *(8, 20, 31, channels_last),
        )
    return (images(), None, records, table, 8, 20, 31, channels_last)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_augment(dtype, channels_last, packed):
    torch.library.opcheck(
        torch.ops.amdim_fast.augment.default, op_arguments(dtype, channels_last, packed)
    )


@pytest.mark.parametrize("windows", [WINDOW, WINDOW.expand(3, 4)])
def test_opcheck_pack_views(windows):
    arguments = (*values(any_params(SIZES.tolist())), SIZES, windows)
    torch.library.opcheck(torch.ops.amdim_fast.pack_views.default, arguments)


@pytest.mark.parametrize(
    ("dtype", "channels_last"), [(torch.float32, False), (torch.bfloat16, True)]
)
def test_compiled_augment_equals_eager(dtype, channels_last):
    options = {"size": 9, "dtype": dtype, "channels_last": channels_last, **HALF}
    function = torch.compile(augment, fullgraph=True)
    for seed in range(2):
        params = any_params(SIZES.tolist(), seed=seed)
        for batch in (images(), images().movedim(-1, 1), list(images())):
            found, expected = (f(batch, params, **options) for f in (function, augment))
            assert found.stride() == expected.stride()
            assert torch.equal(found, expected)


def test_compiled_two_views_equal_eager():
    module = TwoViews("stl10")
    function = torch.compile(module, fullgraph=True)
    batch = torch.stack([white_noise(96, 80, seed) for seed in range(4)])
    index = torch.tensor([7, 2**40, 0, 5])
    for arguments in ({}, {"sample_index": index}):
        torch.manual_seed(3)
        expected = module(batch, **arguments)
        torch.manual_seed(3)
        assert torch.equal(function(batch, **arguments), expected)
        assert not torch.equal(function(batch, **arguments), expected)


def test_two_draws_in_one_graph_differ():
    module = TwoViews("cifar")
    function = torch.compile(lambda x: (module(x), module(x)), fullgraph=True)
    first, second = function(white_noise(32, 32)[None])
    assert not torch.equal(first, second)


def test_compiled_two_views_name_a_bad_index():
    function = torch.compile(TwoViews("digits"), fullgraph=True)
    with pytest.raises(ValueError, match=r"min\(sample_index\) is -4; it must not be negative"):
        function(images(), sample_index=torch.tensor([0, -4, 2]))


def test_compiled_center_view_equals_eager():
    function = torch.compile(center_view, fullgraph=True)
    for batch in (images(), list(images())):
        options = {"resize": 12, "size": 9, **HALF}
        assert torch.equal(function(batch, **options), center_view(batch, **options))


BAD = [
    (
        "crop",
        [0, 0, 21, 5],
        r"params.crop\[1, 2\] is \[0, 0, 21, 5\]; it must be .* 20 x 31 pixels",
    ),
    ("crop", [0, 30, 1, 2], r"params.crop\[1, 2\] is .*; it must be"),
    ("crop", [3, 3, 0, 4], r"params.crop\[1, 2\] is .*; it must be"),
    ("crop", [-1, 3, 2, 4], r"params.crop\[1, 2\] is .*; it must be"),
    ("crop", [2**31 - 1, 0, 2, 2], r"params.crop\[1, 2\] is .*; it must be"),
    ("translate", [20, 0], r"params.translate\[1, 2\] is \[20, 0\]; it must be .* 20 x 31 pixels"),
    ("translate", [0, -31], r"params.translate\[1, 2\] is .*; it must be"),
    ("order", [0, 1, 1, 3], r"params.order\[1, 2\] is \[0, 1, 1, 3\]; it must be a permutation"),
    ("order", [1, 2, 3, 4], r"params.order\[1, 2\] is .*; it must be a permutation"),
    (
        "brightness",
        -0.1,
        r"params.brightness\[1, 2\] is -0.1.*; it must be finite and not negative",
    ),
    ("contrast", float("nan"), r"params.contrast\[1, 2\] is nan; it must be"),
    ("saturation", float("inf"), r"params.saturation\[1, 2\] is inf; it must be"),
    ("hue", 0.51, r"params.hue\[1, 2\] is 0.5.*; it must be between -0.5 and 0.5 turns"),
    ("hue", float("nan"), r"params.hue\[1, 2\] is nan; it must be"),
]


def spoilt(name, value):
    params = plain(SIZES.tolist(), views=2)
    changed = getattr(params, name).clone()
    changed[1, 2] = torch.tensor(value, dtype=changed.dtype)
    return replace(params, **{name: changed})


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_impossible_parameters_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        augment(images(), spoilt(name, value), size=8, **HALF)


def test_compiled_graphs_name_impossible_parameters():
    function = torch.compile(augment, fullgraph=True)
    for name, value, message in BAD:
        with pytest.raises(ValueError, match=message):
            function(images(), spoilt(name, value), size=8, **HALF)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"hue": torch.zeros(2, 3).double()},
            TypeError,
            "params.hue is torch.float64; it must be torch.float32",
        ),
        ({"flip": torch.zeros(2, 2, dtype=torch.bool)}, ValueError, r"params.flip is \[2, 2\]"),
        (
            {"gray": torch.zeros(2, 3)},
            TypeError,
            "params.gray is torch.float32; it must be torch.bool",
        ),
    ],
)
def test_malformed_parameters_are_named(change, error, message):
    params = replace(plain(SIZES.tolist(), views=2), **change)
    with pytest.raises(error, match=message):
        augment(images(), params, size=8, **HALF)


def test_parameters_of_another_batch():
    for count in (2, 4):
        with pytest.raises(ValueError, match=rf"len\(params\) is 3; it must be {count}"):
            augment(images(count), plain(SIZES.tolist()), size=8, **HALF)


@pytest.mark.parametrize("shape", [(3, 0, 31, 3), (3, 20, 0, 3)])
def test_images_without_pixels(shape):
    empty = torch.zeros(shape, dtype=torch.uint8)
    for batch in (empty, list(empty)):
        with pytest.raises(ValueError, match=r"min\(sizes\) is 0; it must be at least 1 pixel"):
            augment(batch, plain(SIZES.tolist()), size=8, **HALF)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(3, 20, 31, 3), "images must be uint8"),
        (0, torch.zeros(2, 20, 31, 3, dtype=torch.uint8), "N as in params"),
        (
            0,
            torch.zeros(3, 19, 31, 3, dtype=torch.uint8),
            r"images must be \[N, height, width, 3\]",
        ),
        (1, torch.zeros(2, 3, dtype=torch.int64), r"layout must be contiguous int64 \[N, 3\]"),
        (1, torch.zeros(3, 3), r"layout must be contiguous int64 \[N, 3\]"),
        (2, torch.zeros(2, 3, 18, dtype=torch.int32), r"params must be contiguous int32"),
        (2, torch.zeros(2, 3, 19), r"params must be contiguous int32 \[V, N, 19\]"),
        (3, torch.zeros(3, 255), r"table must be \[3, 256\]"),
        (4, 0, "size is 0; it must be in 1..8192"),
        (4, 8193, "size is 8193; it must be in 1..8192"),
        (5, 0, r"height is 0 and width 31; they must be in 1..2\^24"),
    ],
)
def test_the_op_itself_rejects(place, value, message):
    arguments = list(op_arguments())
    arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.amdim_fast.augment(*arguments)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_op_makes_nothing_of_nothing(count, channels_last):
    empty = torch.zeros(count, 20, 31, 3, dtype=torch.uint8)
    records = torch.zeros(0 if count else 2, count, RECORD_WORDS, dtype=torch.int32)
    arguments = (empty, None, records, torch.zeros(3, 256), 8, 20, 31, channels_last)
    shape = (8, 8, 3) if channels_last else (3, 8, 8)
    assert torch.ops.amdim_fast.augment(*arguments).shape == (*records.shape[:2], *shape)


@pytest.mark.parametrize("empty", [[], torch.empty(0, 20, 31, 3, dtype=torch.uint8)])
def test_an_empty_batch_launches_nothing(monkeypatch, empty):
    def launch(*arguments, **options):
        raise AssertionError("launched")

    monkeypatch.setattr(augmentation, "make_views", launch)
    params = plain(SIZES.tolist(), views=2)[:0]
    assert augment(empty, params, size=8, dtype=torch.float16, **HALF).shape == (2, 0, 3, 8, 8)
    assert center_view(empty, resize=9, size=8, **HALF).shape == (0, 3, 8, 8)
    with pytest.raises(AssertionError, match="launched"):
        augment(images(), plain(SIZES.tolist()), size=8, **HALF)


@pytest.mark.parametrize(
    ("cpu", "cuda", "device", "message"),
    [
        (False, False, "cpu", r"the compiled library of amdim_fast is not built: pip install \."),
        (False, False, "cuda", r"the compiled library .* C\+\+20 compiler; backend=\"reference\""),
        (True, False, "cuda", "the CUDA library of amdim_fast is not built: .* nvcc on the PATH;"),
        (
            True,
            True,
            "mps",
            'runs on cpu and cuda, not mps; backend="reference" runs plain PyTorch',
        ),
    ],
)
def test_what_is_not_built_is_said(monkeypatch, cpu, cuda, device, message):
    monkeypatch.setattr(compiled, "load_cpu", lambda: cpu)
    monkeypatch.setattr(compiled, "load_cuda", lambda: cuda)
    with pytest.raises(RuntimeError, match=message):
        compiled.require(device)


def test_a_package_that_is_not_built_says_so_and_keeps_its_reference(tmp_path):
    code = (
        "import torch; from amdim_fast import TwoViews\n"
        "images = torch.zeros(2, 96, 96, 3, dtype=torch.uint8)\n"
        "print(TwoViews('stl10', backend='reference')(images).shape)\n"
        "TwoViews('stl10')(images)"
    )
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "amdim_fast", tmp_path / "amdim_fast", ignore=ignore)
    done = run(["-c", code], tmp_path, imported=TORCH)
    assert done.stdout.strip() == "torch.Size([2, 2, 3, 64, 64])", done.stderr
    assert "RuntimeError: the compiled library of amdim_fast is not built" in done.stderr
