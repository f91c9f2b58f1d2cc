"""The Triton kernels against the float64 reference: on a GPU, or in Triton's interpreter."""

import pytest
import torch

from amdim_fast import LossMultiNCE, last_plan, nce_log_prob, nce_loss
from amdim_fast.nce import reference, tiles, torch_backend, triton_backend, triton_problem
from amdim_fast.nce.inputs import NEGATIVES
from amdim_fast.nce.plan import PairingPlan
from tests.nce.cases import (
    CLIPS,
    DEVICE,
    WAYS,
    budget_of,
    check,
    features,
    make_extreme,
    relative_error,
    tile_set,
    upstream_like,
)

DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),  # the interpreter's bf16 dot is wrong
]


@pytest.fixture(params=WAYS)
def small_tiles(request, monkeypatch):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(request.param))
    monkeypatch.setattr(triton_problem, "PROGRAMS_PER_PROCESSOR", 9)


@pytest.fixture
def nan_filled(monkeypatch):
    """New tensors hold NaN, so an entry that no kernel writes shows."""

    def filled(function):
        def wrapped(*arguments, **options):
            tensor = function(*arguments, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return wrapped

    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))


@pytest.mark.usefixtures("small_tiles", "nan_filled")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_error_no_worse_than_eager(dtype, clip, negatives):
    """Stacked sets that wrap around within a tile of 16 rows, and both memory plans."""
    scale = 40.0 if clip == 100.0 else 2.0
    src, trg = features(11, 5, 24, sets=2, dtype=dtype, scale=scale)
    budgets = (budget_of(4, src, trg), None)
    check(src, trg, upstream_like(src, trg), budgets=budgets, clip=clip, negatives=negatives)


# (S or None, B, L, D): one image; less than, exactly and just over tiles of 16 rows, 32 columns
# and 16 features; several strips and bands of row tiles; widths that torch multiplies.
@pytest.mark.usefixtures("small_tiles", "nan_filled")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize(
    "size",
    [
        (None, 1, 5, 8),
        (2, 2, 1, 1),
        (None, 16, 2, 16),
        (1, 17, 3, 40),
        (2, 33, 4, 24),
        (2, 10, 4, 33),
        (4, 9, 7, 15),
    ],
    ids=str,
)
def test_sizes(size, dtype, negatives):
    sets, images, locations, width = size
    src, trg = features(images, locations, width, sets=sets, dtype=dtype)
    budgets = (budget_of(8, src, trg), None)
    check(src, trg, upstream_like(src, trg), budgets=budgets, negatives=negatives)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [24, 520])
def test_shipped_tiles(dtype, width):
    src, trg = features(40, 9, width, sets=2, dtype=dtype, scale=1.0)
    check(src, trg, upstream_like(src, trg), clip=20.0)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e4])
def test_float16_gradients_of_any_size(scale):
    """Upstreams of sets and rows that differ by powers of ten; float16 holds none of them raw."""
    src, trg = features(20, 4, 24, sets=2, dtype=torch.float16)
    upstream = upstream_like(src, trg, scale)
    upstream[0][0] *= 1e-2
    upstream[0][:, ::3] *= 1e-2
    pairing = torch_backend.Pairing(
        src.detach(), trg.detach(), 20.0, False, PairingPlan("keep", 8, 0, 0)
    )
    wide = torch_backend.Pairing(
        pairing.src.double(), pairing.trg.double(), 20.0, False, PairingPlan("recompute", 20, 0, 0)
    )
    results = []
    for module, inputs in ((triton_backend, pairing), (torch_backend, wide)):
        score, neg, _, kept = module.forward(inputs)
        results.append(
            module.backward(
                inputs, kept, score, neg, upstream[0], None, need_src=True, need_trg=True
            )
        )
    (grad_src, _), (true_src, true_trg) = results
    for index in range(2):
        assert relative_error(grad_src[index], true_src[index]) < 1e-3
    rounded = true_trg.half().double()
    ours, half = results[0][1], torch.finfo(torch.float16).tiny
    assert ((ours.double() - rounded).abs() <= 4e-3 * rounded.abs().amax() + half).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("value", ["constant", "huge", "opposed"])
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
def test_extreme_features_stay_finite(clip, value):
    src, trg = features(6, 4, 33)
    make_extreme(src, trg, value)
    loss, mean_sq = nce_loss(src, trg, clip=clip, backend="triton")
    (loss + 1e-9 * mean_sq).backward()
    for tensor in (loss, mean_sq, src.grad, trg.grad):
        assert tensor.isfinite().all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_one_image_has_no_negatives(clip, negatives):
    src, trg = features(1, 5, 8, sets=2)
    output = nce_log_prob(src, trg, clip=clip, negatives=negatives, backend="triton")
    assert (output.log_prob == 0).all()
    grads = torch.autograd.grad(output.log_prob.sum(), (src, trg))
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.usefixtures("small_tiles")
def test_strips_only_change_the_order_of_sums(monkeypatch):
    src, trg = features(30, 7, 20)
    results = []
    for programs in (1, 4, 1000, 1000):
        monkeypatch.setattr(triton_problem, "PROGRAMS_PER_PROCESSOR", programs)
        results.append(nce_log_prob(src, trg, backend="triton"))
    for result in results[1:]:
        for value, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(value, expected)
    assert all(torch.equal(a, b) for a, b in zip(results[2], results[3], strict=True))


@pytest.mark.usefixtures("small_tiles")
def test_strided_inputs():
    src, trg = (tensor.detach() for tensor in features(18, 6, 24, sets=2))
    wide = torch.randn(18, 2, 48, device=DEVICE)
    strided = (
        (wide.transpose(0, 1)[..., ::2].copy_(src), torch.randn_like(trg).copy_(trg)),
        (src, torch.randn(24, 6, 18, device=DEVICE).permute(2, 1, 0).copy_(trg)),
        (src, torch.randn(6, 18, 30, device=DEVICE).transpose(0, 1)[..., 5:29].copy_(trg)),
    )
    expected = nce_log_prob(src, trg, backend="triton")
    upstream = upstream_like(src, trg)
    for pair in strided:
        inputs = [tensor.requires_grad_() for tensor in pair]
        output = nce_log_prob(*inputs, backend="triton")
        assert torch.equal(output.log_prob, expected.log_prob)
        check(*inputs, upstream)


def test_channels_last_maps_are_not_copied():
    feature_map = torch.randn(6, 16, 5, 5, device=DEVICE).to(memory_format=torch.channels_last)
    trg = feature_map.permute(0, 2, 3, 1).flatten(1, 2)
    pairing = torch_backend.Pairing(
        feature_map[None, :, :, 0, 0], trg, 20.0, False, PairingPlan("", 6, 0, 0)
    )
    assert triton_problem.make_problem(pairing, 0).trg.data_ptr() == feature_map.data_ptr()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_module(dtype):
    def maps():
        found = [torch.randn(12, 24, side, side) for side in (1, 5, 7) * 2]
        return [m.to(DEVICE, dtype).to(memory_format=torch.channels_last) for m in found]

    inputs = [m.requires_grad_() for m in maps()]
    locations = tuple(torch.randint(0, 25, (12,)).to(DEVICE) for _ in range(2))

    def gradients(outputs, tensors):
        return [*outputs, *torch.autograd.grad(sum(outputs), tensors)]

    wide = [m.detach().double().requires_grad_() for m in inputs]
    truth = gradients(reference.multiscale_nce(tuple(wide[:3]), tuple(wide[3:]), locations), wide)
    eager = gradients(
        reference.multiscale_nce(tuple(inputs[:3]), tuple(inputs[3:]), locations), inputs
    )
    for budget in (0, None):
        module = LossMultiNCE(memory_budget=budget, backend="triton")
        ours = gradients(module(*inputs, locations=locations), inputs)
        plan = last_plan()
        assert (plan.backend, plan.pairings[0].mode) == (
            "triton",
            "recompute" if budget == 0 else "keep",
        )
        slack = 20 * torch.finfo(torch.float32).eps
        for value, baseline, expected in zip(ours, eager, truth, strict=True):
            half = torch.finfo(dtype).eps / 2 if value.dtype != torch.float32 else 0.0
            error = relative_error(value, expected)
            assert error <= relative_error(baseline, expected) + slack + half


@pytest.mark.usefixtures("small_tiles")
def test_plan():
    src, trg = features(16, 4, 8)
    nce_log_prob(src, trg, backend="triton")
    plan = last_plan()
    products = "cublas" if DEVICE == "cuda" else "aten"
    assert (plan.backend, plan.products, plan.pairings[0].mode) == ("triton", products, "keep")
    assert plan.kept_bytes == 16 * 16 * 4 * 4
    nce_log_prob(src, trg, backend="triton", memory_budget=0)
    assert (last_plan().pairings[0].mode, last_plan().kept_bytes) == ("recompute", 0)
    nce_log_prob(src, trg)
    assert last_plan().backend == ("triton" if DEVICE == "cuda" else "torch")
