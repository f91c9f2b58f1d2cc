"""``scale=`` of the contrastive functions, a number or a learned one, against float64."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from amdim_fast import last_plan, nce_log_prob, nce_loss, nce_objective
from amdim_fast.nce import reference
from amdim_fast.nce.inputs import NEGATIVES
from amdim_fast.nce.scale import scaled
from tests.nce.cases import lower_floors, margin, relative_error
from tests.nce.compiled import compiled
from tests.nce.launches import Launches

SCALES = (0.01, 0.3, 10.0, 1 / 0.07)
BACKENDS = ("torch", "triton")
WAYS = ({}, {"dynamic": True, "fullgraph": True})


@pytest.fixture(autouse=True)
def _small_work(monkeypatch):
    lower_floors(monkeypatch)


def features(images, locations, width, *, sets=None, dtype=torch.float64):
    shape = (images, width) if sets is None else (sets, images, width)
    src = F.normalize(torch.randn(shape, dtype=torch.float64), dim=-1)
    trg = torch.randn(images, locations, width, dtype=torch.float64)
    trg = F.normalize(trg + src.reshape(-1, images, width)[0][:, None], dim=-1)
    return src.to(dtype).requires_grad_(), trg.to(dtype).requires_grad_()


def scale_like(src, value, *, learned=True):
    dtype = torch.promote_types(src.dtype, torch.float32)
    return torch.tensor(value, dtype=dtype, requires_grad=True) if learned else value


def evaluated(function, src, trg, scale, **options):
    """Log_prob, score, mean_sq, and the gradients of src, trg and a learned scale."""
    torch.manual_seed(4)
    found = function(src, trg, scale=scale, **options)
    weights = torch.randn(found.log_prob.shape, dtype=torch.float64)
    total = (found.log_prob * weights).sum() + 0.01 * found.mean_sq.sum()
    leaves = [leaf for leaf in (src, trg, scale) if isinstance(leaf, torch.Tensor)]
    return [part.detach() for part in (*found, *torch.autograd.grad(total, leaves))]


def wide(*leaves):
    return [leaf.detach().double().requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("clip", [5.0, 20.0, 100.0, None])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_equals_the_reference(clip, negatives, learned):
    for images, locations, width, sets in ((7, 4, 17, 3), (2, 1, 1, None), (1, 3, 5, 1)):
        for value in SCALES:
            src, trg = features(images, locations, width, sets=sets)
            scale = scale_like(src, value, learned=learned)
            options = {"clip": clip, "negatives": negatives}
            truth = evaluated(reference.nce_log_prob, src, trg, scale, **options)
            for budget in (0, None):
                options["memory_budget"] = budget
                ours = evaluated(nce_log_prob, src, trg, scale, **options)
                torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_the_default_is_one_over_the_root_of_the_width():
    src, trg = features(6, 3, 16)
    for given, expected in ((0.25, None), (None, 0.25)):
        ours = evaluated(nce_log_prob, src, trg, given)
        truth = evaluated(reference.nce_log_prob, src, trg, expected)
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


def unclipped(src, trg, scale, **options):
    return nce_loss(src, trg, scale=scale, clip=None, **options)[0]


def cross_entropy(src, trg, scale):
    logits = scale * src @ trg.T
    return F.cross_entropy(logits, torch.arange(len(src)))


def results(function, *leaves):
    loss = function(*leaves)
    return [part.detach() for part in (loss, *torch.autograd.grad(loss, leaves))]


def sums_of_squares(parts):
    return torch.stack([part.double().square().sum() for part in parts])


# Not bfloat16 for "triton": the interpreter truncates to it.
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("torch", torch.bfloat16)]
    + [(backend, dtype) for backend in BACKENDS for dtype in (torch.float32, torch.float16)],
)
@pytest.mark.parametrize("value", [1 / 0.07, 100.0])
def test_no_further_than_eager_cross_entropy(dtype, backend, value):
    """On the same rounded inputs; draws as one vector, since a gradient of the scale may be 0."""
    draws, images = (20, 16) if backend == "torch" else (4, 8)
    squares = torch.zeros(3, 4, dtype=torch.float64)
    for _ in range(draws):
        src, trg = features(images, 1, 40, dtype=dtype)
        leaves = src, trg[:, 0].detach().requires_grad_(), scale_like(src, value)
        truth = results(cross_entropy, *wide(*leaves))
        ours = results(partial(unclipped, backend=backend), *leaves)
        assert last_plan().backend == backend
        assert [part.dtype for part in ours] == [torch.float32, dtype, dtype, torch.float32]
        for row, found in enumerate((ours, results(cross_entropy, *leaves))):
            squares[row] += sums_of_squares([a - b for a, b in zip(found, truth, strict=True)])
        squares[2] += sums_of_squares(truth)
    found, baseline = (squares[:2] / squares[2]).sqrt()
    slack = torch.full((4,), 4 * torch.finfo(torch.float32).eps, dtype=torch.float64)
    if backend == "triton":
        slack[1:] += margin(None, dtype)[1]
    assert (found <= baseline + slack).all(), (found, baseline)


def test_clip_from_scaled_sources_alone_is_another_number():
    """Without ``scale=`` products are divided by sqrt(D), and clipped."""
    src, trg = (part.detach() for part in features(32, 1, 64))
    truth = cross_entropy(src, trg[:, 0], 1 / 0.07)
    trap, _ = nce_loss(src / 0.07, trg)
    assert abs(float(trap - truth)) > 0.1
    loss, mean_sq = nce_loss(src, trg[:, 0], scale=1 / 0.07, clip=None)
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
    squares = (src @ trg[:, 0].T / 0.07).square().mean()
    torch.testing.assert_close(mean_sq, squares, rtol=1e-12, atol=1e-12)


def symmetric(function, image, text, logit_scale):
    scale = logit_scale.exp()
    return (function(image, text, scale) + function(text, image, scale)) / 2


@pytest.mark.parametrize("options", [None, *WAYS], ids=str)
def test_clip_with_a_learned_scale(options):
    """Value and gradients, eager and compiled."""

    def ours(*leaves):
        return symmetric(unclipped, *leaves)

    if options is not None:
        ours, graphs = compiled(ours, **{"fullgraph": True} | options)
    counts = []
    for images, temperature in ((9, 0.07), (8, 0.5), (12, 0.02), (5, 0.1)):
        image, text = (part.detach() for part in features(images, 1, 24))
        leaves = wide(image, text[:, 0], torch.tensor(-math.log(temperature)))
        losses = ours(*leaves), symmetric(cross_entropy, *leaves)
        torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
        grads = [torch.autograd.grad(loss, leaves) for loss in losses]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
        counts.append(0 if options is None else graphs.frame_count)
    assert len(set(counts[1:])) == 1


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_number_that_changes_takes_no_graph_each(options):
    src, trg = features(6, 2, 8)
    function = partial(nce_loss, src, trg)
    called, graphs = compiled(lambda scale: function(scale=scale)[0], **options)
    for value in (0.5, 0.25, 2.0, 3.0, 7.5, 11.0, 0.75, 5.0, 6.0):
        expected = reference.nce_loss(src, trg, scale=value)[0]
        torch.testing.assert_close(called(value), expected, rtol=1e-10, atol=1e-10)
    assert graphs.frame_count <= 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_objective(backend):
    src, trg = (part.detach().float().requires_grad_() for part in features(9, 4, 16, sets=2))
    scale = scale_like(src, 5.0)
    found = nce_objective(src, trg, mean_sq_weight=0.1, scale=scale, backend=backend)
    grads = torch.autograd.grad(found.objective, (src, trg, scale))
    leaves = wide(src, trg, scale)
    loss, mean_sq = reference.nce_loss(leaves[0], leaves[1], scale=leaves[2])
    total = (loss + 0.1 * mean_sq).sum()
    for value, expected in zip(
        (found.objective, found.loss, found.mean_sq, *grads),
        (total, loss, mean_sq, *torch.autograd.grad(total, leaves)),
        strict=True,
    ):
        assert relative_error(value, expected.detach()) < 2e-6


def test_a_frozen_or_learned_scale_alone():
    src, trg = (part.detach() for part in features(5, 2, 8))
    scale = scale_like(src, 3.0)
    found, expected = (
        function(src, trg, scale=scale)[0] for function in (nce_loss, reference.nce_loss)
    )
    grads = [torch.autograd.grad(loss, scale)[0] for loss in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    assert not nce_loss(src, trg, scale=scale.detach())[0].requires_grad


def test_under_autocast_and_in_transforms():
    src, trg = (part.detach() for part in features(5, 3, 16))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = nce_loss(src.float(), trg.bfloat16(), scale=torch.tensor(10.0), clip=None)
    given = [tensor.bfloat16().double() for tensor in (src, trg)]
    truth, _ = reference.nce_loss(*given, scale=10.0, clip=None)
    assert loss.dtype == torch.float32
    assert relative_error(loss, truth) < 2e-3

    def function(of, scale):
        return of(src, trg, scale=scale)[0]

    scales = torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64)
    for transform in (torch.func.grad, torch.func.jacrev):
        ours, truth = (
            transform(partial(function, of))(scales[1]) for of in (nce_loss, reference.nce_loss)
        )
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)
    found = torch.func.vmap(partial(function, nce_loss))(scales)
    expected = torch.stack([function(reference.nce_loss, scale) for scale in scales])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_no_host_waits(dtype):
    """A fake tensor has no value to wait for."""
    with FakeTensorMode():
        src = torch.empty(2, 5, 8, device="cuda", dtype=dtype)
        found = scaled(src, torch.empty((), device="cuda"))
    assert (found.shape, found.dtype, found.device) == (src.shape, dtype, src.device)


def test_launches(monkeypatch):
    """A number takes one multiplication and one in the backward; the default takes none."""
    totals = []
    for scale in (None, 2.0):
        src, trg = (part.detach().float().requires_grad_() for part in features(8, 3, 16))
        with Launches(monkeypatch) as launches:
            torch.autograd.grad(nce_loss(src, trg, scale=scale, backend="triton")[0], (src, trg))
        totals.append(launches.counts)
    assert totals[1] - totals[0] == {"aten::mul": 2}
    assert totals[0]["aten::mul"] == 0


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (0.0, ValueError, "scale is 0.0; it must be a finite number greater than 0"),
        (-1, ValueError, "scale is -1; it must be a finite number greater than 0"),
        (float("nan"), ValueError, "scale is nan; it must be a finite number"),
        (float("inf"), ValueError, "scale is inf; it must be a finite number"),
        ("2", TypeError, "scale is '2', a str; it must be a number, or a tensor without"),
        (1j, TypeError, "scale is 1j, a complex; it must be a number, or a tensor"),
        (torch.ones(1), ValueError, r"scale has shape \[1\]; it must be a number, or a tensor"),
        (torch.tensor(2), TypeError, "scale is torch.int64; it must be float32, float16"),
        (torch.ones((), device="meta"), ValueError, "scale is on meta and src on cpu; they must"),
    ],
)
def test_bad_input(scale, error, message):
    src, trg = features(3, 2, 4)
    for function in (nce_log_prob, nce_loss, partial(nce_objective, mean_sq_weight=0.1)):
        with pytest.raises(error, match=message) as caught:
            function(src, trg, scale=scale)
        assert "\n" not in str(caught.value)
