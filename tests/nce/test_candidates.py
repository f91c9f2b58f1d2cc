"""More targets than sources, and positives at any place of them, against float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from amdim_fast import LossMultiNCE, last_plan, nce_log_prob, nce_loss, nce_objective
from amdim_fast.nce import reference, tiles
from amdim_fast.nce.candidates import positives_first
from amdim_fast.nce.inputs import NEGATIVES
from tests.nce.cases import WAYS, check, evaluate, lower_floors, relative_error, tile_set
from tests.nce.cases import upstream_like as upstream_of
from tests.nce.compiled import compiled
from tests.nce.dispatched import PRODUCTS
from tests.nce.launches import Launches

# Images of sources and of targets, and locations.
SIZES = ((7, 12, 4), (1, 2, 1), (1, 9, 5), (2, 3, 1), (5, 5, 3))
GRAPHS = ({"fullgraph": True}, {"dynamic": True, "fullgraph": True})


@pytest.fixture(autouse=True)
def _small_work(monkeypatch):
    lower_floors(monkeypatch)


def features(images, targets, locations, *, width=17, sets=None, dtype=torch.float64):
    shape = (images, width) if sets is None else (sets, images, width)
    src, trg = 2 * torch.randn(shape), torch.randn(targets, locations, width)
    return src.to(dtype).requires_grad_(), trg.to(dtype).requires_grad_()


def places(images, targets):
    return torch.randperm(targets)[:images]


def loops(src, trg, positive, negatives):
    """Log-probabilities of one softmax after the other, without a clip."""
    found = torch.empty(*src.shape[:-1], trg.shape[1], dtype=torch.float64)
    for b, own in enumerate(positive.tolist()):
        scores = trg @ src[b] / src.shape[-1] ** 0.5  # [N, L]
        others = torch.cat([scores[:own], scores[own + 1 :]])
        for place in range(trg.shape[1]):
            against = others[:, place] if negatives == "same_location" else others.flatten()
            logits = torch.cat([scores[own, place][None], against])
            found[b, place] = F.log_softmax(logits, 0)[0]
    return found


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_the_reference_equals_loops(negatives):
    for images, targets, locations in SIZES:
        src, trg = (part.detach() for part in features(images, targets, locations))
        for positive in (None, places(images, targets)):
            found = reference.nce_log_prob(
                src, trg, clip=None, negatives=negatives, positive=positive
            )
            at = torch.arange(images) if positive is None else positive
            expected = loops(src, trg, at, negatives)
            torch.testing.assert_close(found.log_prob, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("at", ["first", "anywhere"])
@pytest.mark.parametrize("clip", [20.0, 100.0, None])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("sets", [None, 3])
def test_equals_the_reference(sets, negatives, clip, at):
    for images, targets, locations in SIZES:
        src, trg = features(images, targets, locations, sets=sets)
        upstream = [part.double() for part in upstream_of(src, trg)]
        positive = None if at == "first" else places(images, targets)
        options = {"clip": clip, "negatives": negatives, "positive": positive}
        truth = evaluate(reference.nce_log_prob, src, trg, upstream, **options)
        for budget in (0, 4_000, None):
            options["memory_budget"] = budget
            ours = evaluate(nce_log_prob, src, trg, upstream, **options)
            torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernels(monkeypatch, way, negatives, dtype):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(way))
    for images, targets, locations in ((5, 11, 3), (1, 4, 2)):
        src, trg = features(images, targets, locations, width=24, sets=2, dtype=dtype)
        for positive in (None, places(images, targets)):
            options = {"negatives": negatives, "positive": positive}
            check(src, trg, upstream_of(src, trg), **options)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("budget", [0, None])
def test_the_objective(backend, budget):
    src, trg = features(6, 10, 4, width=16, sets=2, dtype=torch.float32)
    positive = places(6, 10)
    leaves = [leaf.detach().double().requires_grad_() for leaf in (src, trg)]
    loss, mean_sq = reference.nce_loss(*leaves, positive=positive)
    total = (loss + 0.1 * mean_sq).sum()
    truth = total, loss, mean_sq, *torch.autograd.grad(total, leaves)
    options = {"positive": positive, "backend": backend, "memory_budget": budget}
    found = nce_objective(src, trg, mean_sq_weight=0.1, **options)
    ours = *found, *torch.autograd.grad(found.objective, (src, trg))
    for value, expected in zip(ours, truth, strict=True):
        assert relative_error(value, expected.detach()) < 2e-6


def test_a_queue_that_wants_no_gradient_costs_no_product(monkeypatch):
    """Where only it is detached, the positives get theirs."""
    src, keys = features(6, 6, 1, dtype=torch.float32)
    queue = torch.randn(20, 1, 17)
    for keys_learn, count in ((False, 2), (True, 3)):
        trg = torch.cat([keys if keys_learn else keys.detach(), queue])
        with Launches(monkeypatch) as launches:
            loss, _ = nce_loss(src, trg)
            grads = torch.autograd.grad(loss, (src, keys) if keys_learn else (src,))
        assert sum(launches.counts[name] for name in PRODUCTS) == count
        given = [leaf.detach().double().requires_grad_() for leaf in (src, keys)]
        truth, _ = reference.nce_loss(given[0], torch.cat([given[1], queue.double()]))
        truths = torch.autograd.grad(truth, given)
        for grad, expected in zip(grads, truths, strict=False):
            assert relative_error(grad, expected) < 1e-6


def test_hard_negatives_as_in_retrieval():
    """One more candidate for each question: cross-entropy over all answers and all hard ones."""
    question, answer = features(7, 14, 1)
    logits = 5.0 * question @ answer[:, 0].T
    truth = F.cross_entropy(logits, torch.arange(7))
    loss, _ = nce_loss(question, answer[:, 0], scale=5.0, clip=None)
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
    woven = answer[:, 0].view(2, 7, -1).transpose(0, 1).flatten(0, 1)  # answer, hard, answer, ...
    positive = 2 * torch.arange(7)
    again, _ = nce_loss(question, woven, scale=5.0, clip=None, positive=positive)
    torch.testing.assert_close(again, truth, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(part, (question, answer)) for part in (again, truth)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", GRAPHS, ids=str)
@pytest.mark.parametrize("at", ["first", "anywhere"])
def test_compiled(options, at):
    """One graph for all sizes, or one more; a graph of as many targets is another."""

    def function(src, trg, positive):
        return nce_loss(src, trg, positive=positive)

    called, graphs = compiled(function, **options)
    counts = []
    for images, targets in ((6, 10), (7, 12), (9, 30), (5, 8)):
        src, trg = features(images, targets, 3, width=16)
        positive = None if at == "first" else places(images, targets)
        ours, truth = called(src, trg, positive), reference.nce_loss(src, trg, positive=positive)
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
        grads = [torch.autograd.grad(sum(parts), (src, trg)) for parts in (ours, truth)]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)
        counts.append(graphs.frame_count)
    assert len(set(counts[1:])) == 1
    if at == "anywhere":
        with pytest.raises(RuntimeError, match="positive has an entry twice; each source must"):
            called(src, trg, torch.tensor([1, 2, 3, 3, 0]))


def test_on_a_gpu_no_host_waits():
    """A fake tensor has no value to wait for."""
    with FakeTensorMode():
        trg = torch.empty(9, 3, 8, device="cuda", dtype=torch.bfloat16)
        found = positives_first(trg, torch.empty(5, dtype=torch.int64, device="cuda"), 5)
    assert (found.shape, found.dtype, found.device) == (trg.shape, trg.dtype, trg.device)


def test_opcheck():
    src, trg = features(5, 9, 3, width=8, dtype=torch.float32)
    nothing = [0], [-1], 20.0, False, 1, 1.0, 1.0, "torch", "auto"
    for budget in (0, None):
        arguments = [src[None].detach().requires_grad_()], [trg], [], *nothing, budget
        ops = torch.ops.amdim_fast
        torch.library.opcheck(ops.nce_forward.default, (*arguments, None, [True] * 2))
        torch.library.opcheck(ops.nce_objective.default, (*arguments, [True] * 2))
        assert last_plan().pairings[0].mode in ("keep", "recompute", "one_pass")


@pytest.mark.parametrize(
    ("positive", "error", "message"),
    [
        ([0, 1, 2], TypeError, "positive is a list; it must be a torch.Tensor"),
        (torch.arange(3).int(), TypeError, "positive is torch.int32; it must be int64"),
        (torch.arange(4), ValueError, r"positive has shape \[4\]; it must be \[3\], a target for"),
        (torch.tensor([0, 5, 1]), ValueError, r"positive has an entry outside 0\.\.4; each must"),
        (torch.tensor([0, -1, 1]), ValueError, r"positive has an entry outside 0\.\.4; each must"),
        (torch.tensor([2, 1, 2]), ValueError, "positive has an entry twice; each source must have"),
        (torch.arange(3, device="meta"), ValueError, "positive is on meta; it must be on cpu"),
    ],
)
def test_bad_positives(positive, error, message):
    src, trg = features(3, 5, 2)
    for function in (nce_log_prob, nce_loss, partial(nce_objective, mean_sq_weight=0.1)):
        with pytest.raises(error, match=message) as caught:
            function(src, trg, positive=positive)
        assert "\n" not in str(caught.value)


def test_fewer_targets_than_sources_are_refused_and_more_of_a_map():
    src, trg = features(5, 4, 2)
    with pytest.raises(ValueError, match=r"src 5; .* B must agree, or trg must have more$"):
        nce_loss(src, trg)
    maps = [torch.randn(4, 8, side, side) for side in (1, 5, 7) * 2]
    maps[1] = torch.randn(6, 8, 5, 5)
    with pytest.raises(ValueError, match=r"r5_x1 has 6 images and r1_x1 4; .* B must agree$"):
        LossMultiNCE()(*maps)
