"""The judge itself: against explicit loops, and against the recorded outputs of the original."""

import math

import numpy as np
import pytest
import torch

from amdim_fast.nce import reference

MAPS = ("r1_x1", "r5_x1", "r7_x1", "r1_x2", "r5_x2", "r7_x2")


def loops(src, trg, clip, negatives):
    """Section 3 of the paper, one number at a time."""
    images, locations, width = trg.shape

    def score(b, n, at):
        raw = sum(float(src[b, d]) * float(trg[n, at, d]) for d in range(width)) / math.sqrt(width)
        return raw, raw if clip is None else clip * math.tanh(raw / clip)

    log_prob = torch.empty(images, locations, dtype=torch.float64)
    for b in range(images):
        for at in range(locations):
            own = score(b, b, at)[1]
            places = range(locations) if negatives == "other_images" else [at]
            others = [score(b, n, k)[1] for n in range(images) if n != b for k in places]
            log_prob[b, at] = own - math.log(math.exp(own) + sum(math.exp(s) for s in others))
    squares = [
        score(b, n, k)[0] ** 2
        for b in range(images)
        for n in range(images)
        for k in range(locations)
    ]
    return log_prob, sum(squares) / len(squares)


@pytest.mark.parametrize("negatives", ["other_images", "same_location"])
@pytest.mark.parametrize("clip", [2.0, 20.0, None])
def test_equals_loops(clip, negatives):
    src = 2 * torch.randn(4, 5, dtype=torch.float64)
    trg = torch.randn(4, 3, 5, dtype=torch.float64)
    output = reference.nce_log_prob(src, trg, clip=clip, negatives=negatives)
    log_prob, mean_sq = loops(src, trg, clip, negatives)
    torch.testing.assert_close(output.log_prob, log_prob, rtol=1e-12, atol=1e-12)
    assert float(output.mean_sq) == pytest.approx(mean_sq, rel=1e-12)


@pytest.mark.parametrize("name", ["clip10", "clip20", "saturated"])
def test_original_outputs(golden, name):
    recorded = np.load(golden / f"loss_{name}.npz")
    maps = [torch.from_numpy(recorded[key]).requires_grad_() for key in MAPS]
    locations = tuple(torch.from_numpy(recorded[f"location_{view}"]) for view in ("x1", "x2"))
    clip = float(recorded["tclip"])
    losses = reference.multiscale_nce(tuple(maps[:3]), tuple(maps[3:]), locations, clip=clip)
    for loss, key in zip(losses, ("loss_1t5", "loss_1t7", "loss_5t5", "lgt_reg"), strict=True):
        assert float(loss.detach()) == pytest.approx(float(recorded[key]), rel=1e-5)
    sum(losses).backward()
    for value, key in zip(maps, MAPS, strict=True):
        expected = torch.from_numpy(recorded[f"grad_{key}"])
        assert (value.grad - expected).norm() <= 2e-5 * expected.norm()
    single = reference.nce_log_prob(maps[0].flatten(1), reference.flatten_map(maps[5]), clip=clip)
    for ours, key in ((single.log_prob, "log_prob_1t7"), (single.score, "score_1t7")):
        torch.testing.assert_close(
            ours.detach(), torch.from_numpy(recorded[key]), rtol=1e-5, atol=1e-5
        )
