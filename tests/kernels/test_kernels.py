"""The losses on the Triton kernels against float64: on a GPU, or in Triton's interpreter."""

import itertools

import pytest
import torch

from amdim_fast import LossMultiNCE, last_plan, nce_log_prob, nce_loss, nce_objective
from amdim_fast.nce import algorithm, layout, reference, triton_passes
from amdim_fast.nce.inputs import NEGATIVES
from tests.kernels.cases import KINDS, compare, fill_with_nan, plan_all, use
from tests.nce.cases import (
    CLIPS,
    DEVICE,
    WAYS,
    features,
    make_extreme,
    relative_error,
)

DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),  # the interpreter's bf16 dot is wrong
]
# Mode, rows of a chunk and images of a block, neither of which divides all.
PLANS = {"keep": {"images": 4}, "recompute": {"rows": 5, "images": 4}, "one_pass": {"rows": 5}}


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_with_nan(monkeypatch)
    monkeypatch.setattr(layout, "_layouts", {})


@pytest.fixture(params=WAYS)
def small_tiles(request, monkeypatch):
    use(monkeypatch, request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize(("kind", "mode"), list(zip(KINDS, PLANS, strict=True)))
def test_error_no_worse_than_eager(monkeypatch, kind, mode, negatives, clip, dtype):
    """Products by torch; two sets, whose boundary is inside a chunk."""
    use(monkeypatch, "elementwise")
    plan_all(monkeypatch, mode, **PLANS[mode])
    src, trg = features(7, 8, 24, sets=2, dtype=dtype, scale=40.0 if clip == 100.0 else 2.0)
    compare(kind, src, trg, clip=clip, negatives=negatives)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("mode", PLANS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_function_in_every_mode(monkeypatch, kind, mode, negatives, dtype):
    use(monkeypatch, "elementwise")
    plan_all(monkeypatch, mode, **PLANS[mode])
    src, trg = features(6, 8, 15, dtype=dtype)
    compare(kind, src, trg, negatives=negatives)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["fused", "descriptors"])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_fused_error_no_worse_than_eager(monkeypatch, kind, clip, way, dtype):
    """Two sets in two row tiles, one of which has rows of both."""
    use(monkeypatch, way)
    plan_all(monkeypatch, "recompute", images=4)
    src, trg = features(11, 5, 24, sets=2, dtype=dtype, scale=40.0 if clip == 100.0 else 2.0)
    compare(kind, src, trg, clip=clip)


# (S or None, B, L, D): one image; less than, exactly and just over tiles of 16 rows, 32 columns
# and 16 features; several strips and bands of row tiles; widths that torch multiplies.
FUSED_SIZES = [(None, 1, 5, 8), (None, 16, 2, 16), (1, 17, 3, 40), (2, 33, 4, 24)]
OTHER_SIZES = [(2, 2, 1, 1), (2, 10, 4, 33), (3, 9, 7, 15)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("way", "size"),
    [*itertools.product(("fused", "descriptors"), [*FUSED_SIZES, OTHER_SIZES[1]])]
    + [("elementwise", size) for size in FUSED_SIZES[:3] + OTHER_SIZES],
    ids=str,
)
def test_sizes(monkeypatch, way, size, dtype):
    use(monkeypatch, way)
    sets, images, locations, width = size
    src, trg = features(images, locations, width, sets=sets, dtype=dtype)
    plan_all(monkeypatch, "recompute", rows=9, images=16)
    compare("log_prob", src, trg)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize(
    ("size", "rows"),
    [
        *(((None, 1, 5, 8), 1), ((2, 1, 3, 16), 2), ((2, 2, 1, 8), 1), ((2, 2, 1, 8), 3)),
        *(((None, 16, 2, 16), 7), ((1, 17, 3, 40), 17), ((3, 6, 7, 15), 10)),
    ],
    ids=str,
)
def test_sizes_in_one_pass(monkeypatch, size, rows, negatives, dtype):
    use(monkeypatch, "elementwise")
    sets, images, locations, width = size
    src, trg = features(images, locations, width, sets=sets, dtype=dtype)
    plan_all(monkeypatch, "one_pass", rows=rows)
    compare("objective", src, trg, negatives=negatives)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [24, 520])
@pytest.mark.parametrize("kind", KINDS)
def test_shipped_tiles(monkeypatch, kind, width, dtype):
    src, trg = features(20, 9, width, sets=2, dtype=dtype, scale=1.0)
    for mode in ("recompute",) if kind == "loss" else ("one_pass", "keep"):
        plan_all(monkeypatch, mode, rows=25)
        compare(kind, src, trg)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("value", ["constant", "huge", "opposed"])
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
def test_extreme_features_stay_finite(monkeypatch, clip, value):
    plan_all(monkeypatch, "recompute", rows=4)
    src, trg = features(6, 4, 40)
    make_extreme(src, trg, value)
    loss, mean_sq = nce_loss(src, trg, clip=clip, backend="triton")
    (loss + 1e-9 * mean_sq).backward()
    found = nce_objective(src, trg, mean_sq_weight=1e-9, clip=clip, backend="triton")
    grads = torch.autograd.grad(found.objective, (src, trg))
    for tensor in (loss, mean_sq, src.grad, trg.grad, *found, *grads):
        assert tensor.isfinite().all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_one_image_has_no_negatives(monkeypatch, clip, negatives):
    plan_all(monkeypatch, "recompute", rows=1)
    src, trg = features(1, 5, 8, sets=2)
    options = {"clip": clip, "negatives": negatives, "backend": "triton"}
    output = nce_log_prob(src, trg, **options)
    found = nce_objective(src, trg, mean_sq_weight=0.0, **options)
    assert (output.log_prob == 0).all()
    assert (found.loss == 0).all()
    for scalar in (output.log_prob.sum(), found.objective):
        assert all((grad == 0).all() for grad in torch.autograd.grad(scalar, (src, trg)))


@pytest.mark.parametrize("way", ["fused", "descriptors"])
def test_strips_only_change_the_order_of_sums(monkeypatch, way):
    src, trg = features(30, 7, 24)
    results = []
    for programs in (1, 4, 1000, 1000):
        use(monkeypatch, way, programs)
        plan_all(monkeypatch, "recompute")
        results.append(nce_log_prob(src, trg, backend="triton"))
    for result in results[1:]:
        for value, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(value, expected)
    assert all(torch.equal(a, b) for a, b in zip(results[2], results[3], strict=True))


@pytest.mark.usefixtures("small_tiles")
def test_strided_inputs(monkeypatch):
    plan_all(monkeypatch, "recompute", rows=20, images=8)
    src, trg = (tensor.detach() for tensor in features(18, 6, 24, sets=2))
    wide = torch.randn(18, 2, 48, device=DEVICE)
    strided = (
        (wide.transpose(0, 1)[..., ::2].copy_(src), torch.randn_like(trg).copy_(trg)),
        (src, torch.randn(24, 6, 18, device=DEVICE).permute(2, 1, 0).copy_(trg)),
        (src, torch.randn(6, 18, 30, device=DEVICE).transpose(0, 1)[..., 5:29].copy_(trg)),
    )
    expected = nce_log_prob(src, trg, backend="triton")
    for pair in strided:
        inputs = [tensor.requires_grad_() for tensor in pair]
        output = nce_log_prob(*inputs, backend="triton")
        assert torch.equal(output.log_prob, expected.log_prob)
        compare("log_prob", *inputs)


def test_channels_last_maps_are_not_copied():
    feature_map = torch.randn(6, 16, 5, 5, device=DEVICE).to(memory_format=torch.channels_last)
    trg = feature_map.permute(0, 2, 3, 1).flatten(1, 2)
    for found in (triton_passes.loadable(trg), algorithm.matrix(trg)):
        assert found.data_ptr() == feature_map.data_ptr()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_module(monkeypatch, dtype):
    """Sources that meet two maps, drawn ones among them, and totals of several losses."""
    inputs = [
        torch.randn(6, 24, side, side)
        .to(DEVICE, dtype)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
        for side in (1, 4, 2) * 2
    ]
    locations = tuple(torch.randint(0, 16, (6,)).to(DEVICE) for _ in range(2))
    weights = (1.0, -0.5, 2.0, 0.7)

    def gradients(outputs, tensors):
        total = sum(w * output for w, output in zip(weights, outputs, strict=True))
        return [*outputs, *torch.autograd.grad(total, tensors)]

    def eager(tensors):
        return reference.multiscale_nce(tuple(tensors[:3]), tuple(tensors[3:]), locations)

    wide = [m.detach().double().requires_grad_() for m in inputs]
    truth, baseline = (gradients(eager(tensors), tensors) for tensors in (wide, inputs))
    module = LossMultiNCE(backend="triton")
    for mode in ("keep", "recompute"):
        plan_all(monkeypatch, mode, rows=7, images=4)
        found = gradients(module(*inputs, locations=locations), inputs)
        assert (last_plan().backend, last_plan().pairings[0].mode) == ("triton", mode)
        check_no_worse(found, baseline, truth)
    weights = (0.3,) * 4
    truth, baseline = (gradients(eager(tensors), tensors) for tensors in (wide, inputs))
    plan_all(monkeypatch, "one_pass", rows=7)
    objective, *losses = module.objective(*inputs, locations=locations)
    assert relative_error(objective, sum(truth[:4])) < 1e-5
    check_no_worse([*losses, *torch.autograd.grad(0.3 * objective, inputs)], baseline, truth)


def check_no_worse(found, baseline, truth):
    slack = 20 * torch.finfo(torch.float32).eps
    for value, eager, expected in zip(found, baseline, truth, strict=True):
        half = torch.finfo(value.dtype).eps / 2 if value.dtype != torch.float32 else 0.0
        assert relative_error(value, expected) <= relative_error(eager, expected) + slack + half


@pytest.mark.parametrize("way", WAYS)
def test_plan(monkeypatch, way):
    use(monkeypatch, way)
    src, trg = features(16, 4, 8)
    nce_log_prob(src, trg, backend="triton")
    plan = last_plan()
    products = "cublas" if DEVICE == "cuda" else "aten"
    assert (plan.backend, plan.products, plan.pairings[0].mode) == ("triton", products, "keep")
    assert plan.kept_bytes == 16 * 16 * 4 * 4
    nce_log_prob(src, trg, backend="triton", memory_budget=0)
    assert (last_plan().pairings[0].mode, last_plan().kept_bytes) == ("recompute", 0)
    assert (last_plan().pairings[0].chunk_rows == 0) == (way != "elementwise")
    nce_objective(src, trg, mean_sq_weight=0.1, backend="triton")
    assert (last_plan().pairings[0].mode, last_plan().kept_bytes) == ("one_pass", 0)
    with torch.no_grad():
        nce_log_prob(src, trg, backend="triton")
    assert last_plan().pairings[0].mode == "forward"
    nce_log_prob(src, trg)
    assert last_plan().backend == ("triton" if DEVICE == "cuda" else "torch")


@pytest.mark.usefixtures("small_tiles")
def test_results_without_gradients_are_the_same(monkeypatch):
    """The mode without gradients against that of gradients."""
    src, trg = features(17, 4, 24, sets=2)
    expected = nce_log_prob(src, trg, backend="triton")
    with torch.no_grad():
        found = nce_log_prob(src, trg, backend="triton")
    assert last_plan().pairings[0].mode == "forward"
    for value, right in zip(found, expected, strict=True):
        torch.testing.assert_close(value, right)
