"""Rows against slices of the targets, as on several ranks: the parts add up to the reference."""

import itertools

import pytest
import torch

from amdim_fast.nce import algorithm, reference, tiles, torch_passes, triton_fused, triton_passes
from amdim_fast.nce.algorithm import SourceGradient
from amdim_fast.nce.pairing import Options, Pairing, Results, Upstream
from amdim_fast.nce.plan import PairingPlan
from amdim_fast.nce.way import PairingShape
from tests.nce.cases import DEVICE, features, lower_floors, tile_set, upstream_like

SETS, IMAGES, LOCATIONS, WIDTH = 2, 13, 4, 24
ROWS = SETS * IMAGES
# The last has a slice of one image; rows whose own image is elsewhere are in each.
CUTS = [(0, 9, 13), (0, 1, 6, 13)]
BACKENDS = {"torch": (torch_passes, torch.float64), "triton": (triton_passes, torch.float32)}
# Rows of a chunk, or 0 for fused kernels: boundaries within a set and on none.
CHUNKS = {"keep": ROWS, "recompute": 10}
# Fused kernels store no products and know other_images only.
CALLS = [
    ("fused", "recompute", False),
    ("descriptors", "recompute", False),
    *itertools.product(("elementwise", "torch"), CHUNKS, (False, True)),
]


def parts_of(cuts):
    return list(itertools.pairwise(cuts))


def truth(src, trg, upstream, **options):
    wide = [tensor.detach().double().requires_grad_() for tensor in (src, trg)]
    output = reference.nce_log_prob(*wide, **options)
    objective = (output.log_prob * upstream[0]).sum() + (output.mean_sq * upstream[1]).sum()
    return output, torch.autograd.grad(objective, wide)


def options_of(clip, same_location):
    shared = {"limbs": False, "parts": 1, "loss_weight": 1.0, "mean_sq_weight": 1.0}
    return Options(clip=clip, same_location=same_location, **shared)


def pairing_of(passes, src, trg, options, mode, fused, image_offset):
    """A pairing and room for the results of its rows, which are NaN until they are written."""
    sets, images, width = src.shape
    shape = PairingShape(sets, images, len(trg), trg.shape[1], width)
    chunk = 0 if fused and mode == "recompute" else min(CHUNKS[mode], shape.rows)
    plan = PairingPlan(mode, chunk, 8, 0, 0, 0, "")
    stacked = passes.stack(src, None, None)
    pairing = Pairing(stacked, trg, shape, plan, options, 0, 0, 0, image_offset)
    locations = trg.shape[1]
    sizes = locations, locations, locations if options.same_location else 1, 1, 1
    room = [stacked.new_full((shape.rows * size,), torch.nan) for size in sizes]
    return pairing, Results(*room)


@pytest.mark.parametrize(("way", "mode", "same_location"), CALLS)
@pytest.mark.parametrize(("cuts", "clip"), [(CUTS[0], 20.0), (CUTS[1], None)], ids=str)
def test_slices_equal_the_whole(monkeypatch, cuts, clip, same_location, mode, way):
    lower_floors(monkeypatch)
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(way))
    monkeypatch.setattr(triton_fused, "PROGRAMS_PER_PROCESSOR", 5)
    passes, dtype = BACKENDS["torch" if way == "torch" else "triton"]
    fused = way in ("fused", "descriptors")
    src, trg = (t.detach().to(dtype) for t in features(IMAGES, LOCATIONS, WIDTH, sets=SETS))
    upstream = [tensor.to(dtype) for tensor in upstream_like(src, trg)]
    negatives = "same_location" if same_location else "other_images"
    output, grads = truth(src, trg, upstream, clip=clip, negatives=negatives)

    options = options_of(clip, same_location)
    found = [pairing_of(passes, src, trg[i:j], options, mode, fused, -i) for i, j in parts_of(cuts)]
    kept = [algorithm.forward(passes, *pair) for pair in found]
    assert all((block is not None) == (mode == "keep") for block in kept)
    scores = [pairing.own(results.score).view(SETS, IMAGES, -1) for pairing, results in found]
    for score, (i, j) in zip(scores, parts_of(cuts), strict=True):
        elsewhere = torch.ones(IMAGES, dtype=torch.bool, device=DEVICE)
        elsewhere[i:j] = False
        assert (score[:, elsewhere] == 0).all()
    score = sum(scores)
    negs = [pairing.sums(results.neg).view(SETS, IMAGES, -1) for pairing, results in found]
    neg = torch.logsumexp(torch.stack(negs), dim=0)
    shares = [(j - i) / IMAGES for i, j in parts_of(cuts)]
    squares = [results.row_square.view(SETS, IMAGES).sum(1) for _, results in found]
    mean_sq = sum(share * part for share, part in zip(shares, squares, strict=True))
    close = (
        {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    )
    for value, expected in ((score, output.score), (mean_sq, output.mean_sq)):
        torch.testing.assert_close(value.double(), expected.detach(), **close)
    log_prob = torch_passes.log_probability(score, neg)
    torch.testing.assert_close(log_prob.double(), output.log_prob.detach(), **close)

    grad_src = src.new_full((ROWS, WIDTH), torch.nan)
    grad_trg = torch.full_like(trg, torch.nan)
    for index, ((pairing, results), share) in enumerate(zip(found, shares, strict=True)):
        i, j = parts_of(cuts)[index]
        everywhere = results._replace(score=score.flatten(), neg=neg.flatten())
        algorithm.backward(
            passes,
            pairing,
            everywhere,
            Upstream(log_prob=upstream[0].flatten(), mean_sq=upstream[1] * share),
            kept[index],
            grad_src=SourceGradient(grad_src, add=index > 0),
            grad_trg=grad_trg[i:j],
        )
    torch.testing.assert_close(grad_src.view_as(src).double(), grads[0], **close)
    torch.testing.assert_close(grad_trg.double(), grads[1], **close)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("offset", [-1, 1])
def test_a_wrong_offset_is_caught(monkeypatch, backend, fused, offset):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set("fused"))
    passes, dtype = BACKENDS[backend]
    src, trg = (t.detach().to(dtype) for t in features(9, 4, 8, sets=1))
    options = options_of(20.0, False)
    found = []
    for place in (0, offset):
        fused = fused and backend == "triton"
        given = pairing_of(passes, src, trg, options, "recompute", fused, place)
        algorithm.forward(passes, *given)
        found.append(given[1].score.view(9, 4))
    assert (found[1] - found[0]).abs().max() > 0.1
    outside = 0 if offset < 0 else -1
    assert (found[1][outside] == 0).all()
