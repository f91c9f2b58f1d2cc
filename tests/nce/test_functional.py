"""``nce_log_prob`` and ``nce_loss`` against the reference in float64."""

import itertools
from functools import partial

import pytest
import torch

from amdim_fast import last_plan, nce_log_prob, nce_loss
from amdim_fast.nce import compiled_blocks, reference, torch_passes
from amdim_fast.nce.clip import LARGEST_SHIFTED_CLIP
from amdim_fast.nce.inputs import NEGATIVES
from amdim_fast.nce.score_blocks import Block
from tests.nce.cases import (
    LIBRARIES,
    evaluate,
    lower_floors,
    make_extreme,
    relative_error,
    use_library,
)

CLIPS = (5.0, 20.0, 43.0, 100.0, None)
HALVES = (torch.float16, torch.bfloat16)
# Bytes: one row a chunk and one image a block; a few of them, or all scores kept; the default.
BUDGETS = (0, 4_000, None)


@pytest.fixture(autouse=True)
def _small_work(monkeypatch):
    lower_floors(monkeypatch)


def features(images, locations, width, *, sets=None, dtype=torch.float64, scale=2.0, device="cpu"):
    shape = (images, width) if sets is None else (sets, images, width)
    src = (scale * torch.randn(shape, dtype=torch.float64, device=device)).to(dtype)
    trg = torch.randn(images, locations, width, dtype=torch.float64, device=device).to(dtype)
    return src.requires_grad_(), trg.requires_grad_()


def upstream_like(src, trg):
    log_prob_shape = (*src.shape[:-1], trg.shape[1])
    return (
        torch.randn(log_prob_shape, dtype=torch.float64, device=src.device),
        torch.randn(src.shape[:-2], dtype=torch.float64, device=src.device),
    )


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("sets", [None, 1, 3])
def test_equals_reference(sets, clip, negatives):
    for images, locations, width in itertools.product((1, 2, 7), (1, 4), (1, 17, 63)):
        src, trg = features(images, locations, width, sets=sets)
        upstream = upstream_like(src, trg)
        options = {"clip": clip, "negatives": negatives}
        truth = evaluate(reference.nce_log_prob, src, trg, upstream, **options)
        for budget in BUDGETS:
            ours = evaluate(nce_log_prob, src, trg, upstream, memory_budget=budget, **options)
            for value, expected in zip(ours, truth, strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "library", "compiled"),
    [(dtype, "aten", compiled) for dtype in HALVES for compiled in (True, False)]
    + [(torch.float32, library, True) for library in LIBRARIES]
    + [(torch.float32, "aten", False)],
)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_error_no_worse_than_eager(monkeypatch, dtype, library, compiled, clip, negatives):
    """Against float64 on the same rounded inputs, no further than eager in this dtype.

    The margin is float32's: a few roundings, and one of the exponent ``score - clip``.
    """
    lower_floors(monkeypatch, least=8_192)
    use_library(monkeypatch, library)
    monkeypatch.setattr(compiled_blocks, "load_cpu", lambda: compiled)
    shift = clip if clip is not None and clip <= LARGEST_SHIFTED_CLIP else 0.0
    margin = (4 + shift) * torch.finfo(torch.float32).eps
    src, trg = features(40, 9, 65, sets=2, dtype=dtype)
    upstream = upstream_like(src, trg)
    options = {"clip": clip, "negatives": negatives}
    wide = [tensor.detach().double().requires_grad_() for tensor in (src, trg)]
    truth = evaluate(reference.nce_log_prob, *wide, upstream, **options)
    eager = evaluate(reference.nce_log_prob, src, trg, upstream, **options)
    for budget in BUDGETS:
        ours = evaluate(nce_log_prob, src, trg, upstream, memory_budget=budget, **options)
        assert last_plan().products == library
        in_cpp = compiled and (clip is None or clip <= LARGEST_SHIFTED_CLIP)
        assert all(("in C++" in text) == in_cpp for text in last_plan().kernels)
        for value, baseline, expected in zip(ours, eager, truth, strict=True):
            assert relative_error(value, expected) <= relative_error(baseline, expected) + margin
        assert all(value.dtype == torch.float32 for value in ours[:3])
        assert all(value.dtype == dtype for value in ours[3:])


@pytest.mark.parametrize("clip", [5.0, 20.0, None])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("budget", [0, None])
def test_gradcheck(clip, negatives, budget):
    src, trg = features(4, 3, 5, sets=2, scale=1.0)

    def function(src, trg):
        output = nce_log_prob(src, trg, clip=clip, negatives=negatives, memory_budget=budget)
        return output.log_prob, output.mean_sq

    assert torch.autograd.gradcheck(function, (src, trg))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("value", ["constant", "huge", "opposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_features_stay_finite(clip, value, dtype):
    src, trg = features(6, 4, 33, dtype=dtype)
    make_extreme(src, trg, value)
    loss, mean_sq = nce_loss(src, trg, clip=clip)
    (loss + 1e-9 * mean_sq).backward()
    for tensor in (loss, mean_sq, src.grad, trg.grad):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_one_image_has_no_negatives(clip, negatives):
    src, trg = features(1, 5, 8, sets=2, dtype=torch.float32)
    output = nce_log_prob(src, trg, clip=clip, negatives=negatives)
    assert (output.log_prob == 0).all()
    grads = torch.autograd.grad(output.log_prob.sum(), (src, trg))
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("budget", [0, None])
def test_two_backwards_agree(budget):
    src, trg = features(9, 4, 12, dtype=torch.float32)
    loss, mean_sq = nce_loss(src, trg, memory_budget=budget)
    first = torch.autograd.grad(loss + mean_sq, (src, trg), retain_graph=True)
    second = torch.autograd.grad(loss + mean_sq, (src, trg))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_reproducible_bit_for_bit():
    src, trg = features(33, 9, 40, sets=2, dtype=torch.float32)
    upstream = [tensor.float() for tensor in upstream_like(src, trg)]
    runs = [evaluate(nce_log_prob, src, trg, upstream, memory_budget=10_000) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("budget", [0, None])
def test_expanded_upstream(backend, budget):
    """Autograd's gradient of a sum is one number, expanded."""
    dtype = torch.float64 if backend == "torch" else torch.float32
    src, trg = features(3, 2, 8, sets=3, dtype=dtype)
    wide = [tensor.detach().double().requires_grad_() for tensor in (src, trg)]

    def parts(function, loss, *inputs):
        output = function(*inputs)
        return output.log_prob, output.mean_sq, loss(*inputs)[0]

    options = {"backend": backend, "memory_budget": budget}
    ours = parts(partial(nce_log_prob, **options), partial(nce_loss, **options), src, trg)
    truth = parts(reference.nce_log_prob, reference.nce_loss, *wide)
    for value, expected in zip(ours, truth, strict=True):
        grads = torch.autograd.grad(value.sum(), (src, trg), retain_graph=True)
        truths = torch.autograd.grad(expected.sum(), wide, retain_graph=True)
        for grad, other in zip(grads, truths, strict=True):
            assert relative_error(grad, other) < 1e-5


def test_strided_inputs():
    src, trg = features(7, 6, 10)
    wide_src = torch.randn(7, 20, dtype=torch.float64)[:, ::2].copy_(src.detach())
    wide_trg = torch.randn(10, 6, 7, dtype=torch.float64).permute(2, 1, 0).copy_(trg.detach())
    a = nce_log_prob(src, trg)
    b = nce_log_prob(wide_src.requires_grad_(), wide_trg.requires_grad_())
    torch.testing.assert_close(a.log_prob, b.log_prob)


def test_mean_sq_alone_and_log_prob_alone():
    src, trg = features(5, 4, 6)
    for pick in ("log_prob", "mean_sq"):
        ours = torch.autograd.grad(getattr(nce_log_prob(src, trg), pick).sum(), (src, trg))
        truth = torch.autograd.grad(
            getattr(reference.nce_log_prob(src, trg), pick).sum(), (src, trg)
        )
        for value, expected in zip(ours, truth, strict=True):
            torch.testing.assert_close(value, expected)


def test_score_is_detached():
    output = nce_log_prob(*features(3, 2, 4))
    assert not output.score.requires_grad
    assert output.log_prob.requires_grad


def test_second_derivative_is_refused():
    src, trg = features(3, 2, 4)
    loss, _ = nce_loss(src, trg)
    (grad,) = torch.autograd.grad(loss, src, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_result_is_left_unwritten(monkeypatch, budget):
    """Buffers that start as NaN change nothing."""
    src, trg = features(7, 4, 9, sets=2)
    upstream = upstream_like(src, trg)
    expected = evaluate(nce_log_prob, src, trg, upstream, memory_budget=budget)
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(float("nan"))
    )
    found = evaluate(nce_log_prob, src, trg, upstream, memory_budget=budget)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def planted(name):
    """Replace one piece of the blocked arithmetic by a wrong one."""
    own = Block.own
    gradients, scores = torch_passes.row_gradients, torch_passes.scores
    return {
        "own image shifted by one": (Block, "own", lambda self, p, s: own(self, p.roll(1, 0), s)),
        "weights of the wrong sign": (
            *(torch_passes, "row_gradients"),
            lambda *a: (gradients(*a)[0], -gradients(*a)[1], gradients(*a)[2]),
        ),
        "no gradient of the positives": (
            *(torch_passes, "row_gradients"),
            lambda *a: (torch.zeros_like(gradients(*a)[0]), *gradients(*a)[1:]),
        ),
        "product off by one in ten thousand": (
            *(torch_passes, "scores"),
            lambda *a: 1.0001 * scores(*a),
        ),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "own image shifted by one",
        "weights of the wrong sign",
        "no gradient of the positives",
        "product off by one in ten thousand",
    ],
)
def test_planted_errors_are_caught(monkeypatch, name):
    monkeypatch.setattr(*planted(name))
    with pytest.raises(AssertionError):
        test_equals_reference(2, 20.0, "other_images")


@pytest.mark.parametrize("clip", [1e-6, 1e30, 1e39, 1e300, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clips_at_the_ends_of_their_range(clip, dtype):
    """From 1e30 on a clip is none."""
    src, trg = features(6, 4, 33, dtype=dtype)
    wide = [tensor.detach().double().requires_grad_() for tensor in (src, trg)]
    upstream = upstream_like(src, trg)
    truth = evaluate(reference.nce_log_prob, *wide, upstream, clip=clip if clip < 1 else None)
    for value, expected in zip(
        evaluate(nce_log_prob, src, trg, upstream, clip=clip), truth, strict=True
    ):
        assert relative_error(value, expected) < 1e-5
