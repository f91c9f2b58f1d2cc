"""Rows against slices of the targets, as on several ranks: the parts add up to the reference."""

import itertools

import pytest
import torch

from amdim_fast.nce import reference, tiles, torch_backend, triton_backend, triton_problem
from amdim_fast.nce.plan import PairingPlan
from tests.nce.cases import DEVICE, features, tile_set, upstream_like

SETS, IMAGES, LOCATIONS, WIDTH = 2, 21, 4, 24
# The last has a slice of one image; rows whose own image is elsewhere are in each.
CUTS = [(0, 8, 21), (0, 1, 7, 13, 21)]
BACKENDS = {"torch": (torch_backend, torch.float64), "triton": (triton_backend, torch.float32)}


def parts_of(cuts):
    return list(itertools.pairwise(cuts))


def truth(src, trg, upstream, **options):
    wide = [tensor.detach().double().requires_grad_() for tensor in (src, trg)]
    output = reference.nce_log_prob(*wide, **options)
    objective = (output.log_prob * upstream[0]).sum() + (output.mean_sq * upstream[1]).sum()
    return output, torch.autograd.grad(objective, wide)


@pytest.mark.parametrize("way", ["fused", "descriptors", "elementwise", "torch"])
@pytest.mark.parametrize("mode", ["keep", "recompute"])
@pytest.mark.parametrize("same_location", [False, True])
@pytest.mark.parametrize("clip", [20.0, None])
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_slices_equal_the_whole(monkeypatch, cuts, clip, same_location, mode, way):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(way))
    monkeypatch.setattr(triton_problem, "PROGRAMS_PER_PROCESSOR", 5)
    module, dtype = BACKENDS["torch" if way == "torch" else "triton"]
    src, trg = (t.detach().to(dtype) for t in features(IMAGES, LOCATIONS, WIDTH, sets=SETS))
    upstream = [tensor.to(dtype) for tensor in upstream_like(src, trg)]
    options = {"clip": clip, "negatives": "same_location" if same_location else "other_images"}
    output, grads = truth(src, trg, upstream, **options)

    pairings = [
        torch_backend.Pairing(src, trg[i:j], clip, same_location, PairingPlan(mode, 4, 0, 0))
        for i, j in parts_of(cuts)
    ]
    offsets = [-i for i, _ in parts_of(cuts)]
    found = [module.forward(*pair) for pair in zip(pairings, offsets, strict=True)]
    for (score, *_), (i, j) in zip(found, parts_of(cuts), strict=True):
        elsewhere = torch.ones(IMAGES, dtype=torch.bool, device=DEVICE)
        elsewhere[i:j] = False
        assert (score[:, elsewhere] == 0).all()
    score = sum(part[0] for part in found)
    neg = torch.logsumexp(torch.stack([part[1] for part in found]), dim=0)
    shares = [(j - i) / IMAGES for i, j in parts_of(cuts)]
    mean_sq = sum(share * part[2] for share, part in zip(shares, found, strict=True))
    close = (
        {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    )
    for value, expected in ((score, output.score), (mean_sq, output.mean_sq)):
        torch.testing.assert_close(value.double(), expected.detach(), **close)
    log_prob = -torch.nn.functional.softplus(neg - score)
    torch.testing.assert_close(log_prob.double(), output.log_prob.detach(), **close)

    sums = []
    for pairing, offset, share, part in zip(pairings, offsets, shares, found, strict=True):
        given = (pairing, part[3], score, neg, upstream[0], upstream[1] * share)
        sums.append(module.backward(*given, need_src=True, need_trg=True, image_offset=offset))
    grad_src, grad_trg = sum(s for s, _ in sums), torch.cat([t for _, t in sums])
    torch.testing.assert_close(grad_src.double(), grads[0], **close)
    torch.testing.assert_close(grad_trg.double(), grads[1], **close)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [-1, 1])
def test_a_wrong_offset_is_caught(monkeypatch, backend, offset):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set("fused"))
    module, dtype = BACKENDS[backend]
    src, trg = (t.detach().to(dtype) for t in features(9, 4, 8, sets=1))
    pairing = torch_backend.Pairing(src, trg, 20.0, False, PairingPlan("recompute", 4, 0, 0))
    (expected, *_), (found, *_) = module.forward(pairing), module.forward(pairing, offset)
    assert (found - expected).abs().max() > 0.1
    outside = 0 if offset < 0 else -1
    assert (found[:, outside] == 0).all()
