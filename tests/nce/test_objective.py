"""``nce_objective`` and ``LossMultiNCE.objective``: values, parts and gradients."""

import itertools

import pytest
import torch

from amdim_fast import LossMultiNCE, last_plan, nce_loss, nce_objective
from amdim_fast.nce import algorithm, op_kernels, tiles, torch_passes
from amdim_fast.nce.clip import LARGEST_SHIFTED_CLIP
from amdim_fast.nce.inputs import NEGATIVES
from tests.nce.cases import LIBRARIES, lower_floors, margin, tile_set, use_library
from tests.nce.objective_cases import (
    WEIGHT,
    assert_equal,
    assert_no_worse,
    features,
    maps,
    our_loss,
    ours,
    places,
    true_loss,
    truth,
    wide,
)

CLIPS = (20.0, 100.0, None)
# The smallest chunks, or for bfloat16 blocks, which are computed twice; chunks of a few rows; all.
BUDGETS = (0, 3_000, None)
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SINGLE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(autouse=True)
def _small_work(monkeypatch):
    lower_floors(monkeypatch)


def mode():
    return last_plan().pairings[0].mode


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("sets", [None, 1, 3])
def test_equals_reference(sets, clip, negatives):
    for images, locations, width in itertools.product((1, 2, 7), (1, 4), (1, 17)):
        inputs = features(images, locations, width, sets=sets)
        options = {"clip": clip, "negatives": negatives}
        expected = truth(*inputs, **options)
        for budget in BUDGETS:
            found = ours(*inputs, memory_budget=budget, **options)
            assert_equal(found, expected, **EXACT)
            assert mode() == "one_pass"


def test_chunks_that_end_within_a_set_and_across_sets():
    """Of 3 sets of 7 images: chunks of a number of rows that divides neither."""
    inputs = features(7, 4, 9, sets=3)
    expected = truth(*inputs)
    seen = set()
    for budget in range(300, 12_000, 200):
        assert_equal(ours(*inputs, memory_budget=budget), expected, **EXACT)
        seen.add(last_plan().pairings[0].chunk_rows)
    assert seen >= {1, 2, 3, 5, 7, 11, 21}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize(
    ("dtype", "library"),
    [(torch.float16, "aten"), (torch.bfloat16, "aten")]
    + [(torch.float32, library) for library in LIBRARIES],
)
def test_error_no_worse_than_eager(monkeypatch, dtype, library, negatives, clip):
    lower_floors(monkeypatch, least=4096)
    use_library(monkeypatch, library)
    shift = clip if clip is not None and clip <= LARGEST_SHIFTED_CLIP else 0.0
    rounding = (6 + shift) * torch.finfo(torch.float32).eps
    inputs, options = features(30, 9, 33, sets=2, dtype=dtype), {}
    options |= {"clip": clip, "negatives": negatives}
    expected, eager = truth(*wide(inputs), **options), truth(*inputs, **options)
    for budget in (0, 200_000, None):
        found = ours(*inputs, memory_budget=budget, **options)
        assert_no_worse(found, eager, expected, rounding)
        assert mode() == ("recompute" if (dtype, budget) == (torch.bfloat16, 0) else "one_pass")
        assert {grad.dtype for grad in found.grads} == {dtype}
        assert {part.dtype for part in (found.objective, *found.parts)} == {torch.float32}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(("images", "sides"), [(5, (1, 5, 7)), (1, (1, 2, 3)), (2, (1, 4, 1))])
def test_loss_equals_reference(images, sides, clip, budget):
    inputs, locations = maps(images, 8, sides), places(images, sides[1] ** 2)
    expected = true_loss(inputs, locations, clip=clip)
    for layout in (torch.channels_last, torch.contiguous_format):
        given = [t.detach().contiguous(memory_format=layout).requires_grad_() for t in inputs]
        found = our_loss(given, locations, clip=clip, memory_budget=budget)
        assert_equal(found, expected, **EXACT)


@pytest.mark.parametrize("budget", [0, 100_000, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_error_of_the_loss_is_no_worse_than_that_of_eager(dtype, budget):
    inputs, locations = maps(16, 24, dtype=dtype), places(16)
    eager, expected = (true_loss(given, locations) for given in (inputs, wide(inputs)))
    found = our_loss(inputs, locations, memory_budget=budget)
    assert_no_worse(found, eager, expected, 14 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("way", ["fused", "elementwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("clip", [20.0, None])
def test_kernels(monkeypatch, way, dtype, clip):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(way))
    options = {"clip": clip, "backend": "triton"}
    inputs, locations = maps(3, 8, (1, 2, 3), dtype), places(3, 4)
    expected, eager = (true_loss(given, locations, clip=clip) for given in (wide(inputs), inputs))
    for budget in (0, 1_500, None):
        found = our_loss(inputs, locations, memory_budget=budget, **options)
        assert last_plan().backend == "triton"
        assert_no_worse(found, eager, expected, margin(clip, dtype)[1])


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_kernels_of_one_pairing(monkeypatch, negatives):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set("fused"))
    inputs = features(5, 3, 16, sets=2, dtype=torch.float32)
    expected = truth(*inputs, negatives=negatives)
    for budget in (0, None):
        found = ours(*inputs, memory_budget=budget, negatives=negatives, backend="triton")
        assert_equal(found, expected, **SINGLE)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("budget", [0, None])
def test_equals_the_sum_of_forward(backend, budget):
    dtype = torch.float64 if backend == "torch" else torch.float32
    inputs, locations = maps(4, 8, (1, 2, 3), dtype), places(4, 4)
    loss = LossMultiNCE(20.0, WEIGHT, backend=backend, memory_budget=budget)
    parts = loss(*inputs, locations=locations)
    found = our_loss(inputs, locations, clip=20.0, backend=backend, memory_budget=budget)
    grads = torch.autograd.grad(sum(parts), inputs)
    close = EXACT if backend == "torch" else SINGLE
    torch.testing.assert_close(found.objective, sum(parts).detach(), **close)
    for part, expected in zip(found.parts, parts, strict=True):
        torch.testing.assert_close(part, expected.detach(), **close)
    for grad, expected in zip(found.grads, grads, strict=True):
        torch.testing.assert_close(grad, expected, **close)


def test_only_the_objective_is_differentiable():
    src, trg = features(4, 3, 6, sets=2)
    found = nce_objective(src, trg, mean_sq_weight=WEIGHT)
    loss, mean_sq = nce_loss(src, trg)
    assert [part.requires_grad for part in found] == [True, False, False]
    assert (found.loss.shape, found.objective.shape) == ((2,), ())
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.mean_sq, mean_sq.detach())
    whole = LossMultiNCE().objective(*maps())
    assert [part.requires_grad for part in whole] == [True, False, False, False, False]
    assert {part.shape for part in whole} == {torch.Size()}


@pytest.mark.parametrize("weight", [0.0, 1e-3, 40.0])
def test_weight_of_the_penalty(weight):
    inputs = features(5, 3, 6)
    loss, mean_sq = nce_loss(*inputs)
    expected = torch.autograd.grad(loss + weight * mean_sq, inputs)
    found = torch.autograd.grad(nce_objective(*inputs, mean_sq_weight=weight).objective, inputs)
    for grad, other in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, other, **EXACT)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_one_image_has_no_negatives(clip, negatives):
    inputs = features(1, 5, 8, sets=2)
    found = ours(*inputs, clip=clip, negatives=negatives)
    assert (found.parts[0] == 0).all()
    torch.testing.assert_close(found.objective, WEIGHT * found.parts[1].sum())
    assert_equal(found, truth(*inputs, clip=clip, negatives=negatives), **EXACT)


def test_sources_and_targets_of_any_strides():
    src, trg = features(6, 4, 10, sets=3)
    expected = ours(src, trg)
    strided_src = torch.randn(6, 20, 3, dtype=torch.float64).permute(2, 0, 1)[..., ::2]
    strided_trg = torch.randn(10, 4, 6, dtype=torch.float64).permute(2, 1, 0)
    strided_src.copy_(src.detach())
    strided_trg.copy_(trg.detach())
    found = ours(strided_src.requires_grad_(), strided_trg.requires_grad_())
    assert_equal(found, expected, **EXACT)
    one = src.detach()[:1].clone().requires_grad_()
    many = ours(one.expand(3, -1, -1), trg, 1.0)
    copies = ours(one.repeat(3, 1, 1), trg, 1.0)
    assert_equal(many, copies, **EXACT)
    row = trg.detach()[:, :1].clone().requires_grad_()
    for memory_budget in BUDGETS:
        objective = nce_objective(
            src, row.expand(-1, 4, -1), mean_sq_weight=WEIGHT, memory_budget=memory_budget
        ).objective
        whole = nce_objective(src, row.repeat(1, 4, 1), mean_sq_weight=WEIGHT).objective
        for a, b in zip(
            *(torch.autograd.grad(v, (src, row)) for v in (objective, whole)), strict=True
        ):
            torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_silent(backend, value):
    dtype = torch.float64 if backend == "torch" else torch.float32
    for place in (0, 1):
        inputs = features(4, 3, 8, dtype=dtype)
        with torch.no_grad():
            inputs[place][2].fill_(value)
        for budget in (0, None):
            found = ours(*inputs, backend=backend, memory_budget=budget)
            assert not found.objective.isfinite()
            assert not any(grad.isfinite().all() for grad in found.grads)


@pytest.mark.parametrize("budget", BUDGETS)
def test_reproducible_bit_for_bit(budget):
    inputs, locations = maps(9, 16, dtype=torch.float32), places(9)
    first, *others = (our_loss(inputs, locations, memory_budget=budget) for _ in range(3))
    for other in others:
        assert_equal(other, first, rtol=0, atol=0)


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_result_is_left_unwritten(monkeypatch, budget):
    """Memory that starts as NaN changes nothing."""
    inputs, locations = maps(), places()
    expected = our_loss(inputs, locations, memory_budget=budget)
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        made = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, made=made, **k: made(*a, **k).fill_(float("nan"))
        )
    assert_equal(our_loss(inputs, locations, memory_budget=budget), expected, rtol=0, atol=0)


def planted(name):
    """Replace one piece of the algorithm by a wrong one."""
    write, part = torch_passes.write_target_gradient, algorithm.SourceGradient
    statistics = torch_passes.statistics
    return {
        "a chunk overwrites the chunks before": (
            torch_passes,
            "write_target_gradient",
            lambda *a, add: write(*a, add=False),
        ),
        "only the last pairing of shared sources counts": (
            op_kernels,
            "SourceGradient",
            lambda rows, add=False: part(rows, False),
        ),
        "statistics of the first chunk only": (
            torch_passes,
            "statistics",
            lambda pairing, results, stored, first: statistics(pairing, results, stored, 0),
        ),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "a chunk overwrites the chunks before",
        "only the last pairing of shared sources counts",
        "statistics of the first chunk only",
    ],
)
def test_planted_errors_are_caught(monkeypatch, name):
    monkeypatch.setattr(*planted(name))
    with pytest.raises(AssertionError):
        test_loss_equals_reference(5, (1, 5, 7), 20.0, 3_000)
