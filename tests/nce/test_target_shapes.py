"""Targets of any shape: vectors, sequences, maps and volumes are what their [B, L, D] is."""

from functools import partial

import pytest
import torch

from amdim_fast import (
    FeatureMapContrastiveTask,
    LossMultiNCE,
    nce_log_prob,
    nce_loss,
    nce_objective,
)
from amdim_fast.nce import reference, torch_passes

WIDTH = 8
# Targets of four images, and the dimensions of their features' places in row-major order.
SHAPES = {
    "vectors": (4, WIDTH),
    "a map": (4, WIDTH, 3, 5),
    "a video": (4, WIDTH, 2, 3, 2),
    "more": (4, WIDTH, 2, 1, 3, 2),
}


def places_of(trg):
    """[B, L, D], one place after the other."""
    flat = trg.reshape(trg.shape[0], WIDTH, -1)
    return torch.stack([flat[:, :, place] for place in range(flat.shape[2])], dim=1)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sets", [None, 2])
def test_functions(name, sets):
    shape = (4, WIDTH) if sets is None else (sets, 4, WIDTH)
    src = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    trg = torch.randn(SHAPES[name], dtype=torch.float64, requires_grad=True)
    output = nce_log_prob(src, trg)
    truth = reference.nce_log_prob(src, places_of(trg))
    torch.testing.assert_close(tuple(output), tuple(truth), rtol=1e-10, atol=1e-12)
    assert output.log_prob.shape == (*shape[:-1], trg[0, 0].numel())
    grads = [
        torch.autograd.grad(found.log_prob.square().sum(), (src, trg)) for found in (output, truth)
    ]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    loss, mean_sq = nce_loss(src, trg)
    torch.testing.assert_close(loss, -truth.log_prob.mean(dim=(-2, -1)))
    found = nce_objective(src, trg, mean_sq_weight=0.5)
    torch.testing.assert_close(found.objective, (loss + 0.5 * mean_sq).sum())


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((4, WIDTH, 3, 5), torch.channels_last), ((4, WIDTH, 2, 3, 2), torch.channels_last_3d)],
)
def test_a_channels_last_map_is_not_copied(monkeypatch, shape, layout):
    seen = []
    scores = torch_passes.scores
    monkeypatch.setattr(torch_passes, "scores", lambda *a: seen.append(a[3]) or scores(*a))
    trg = torch.randn(shape).contiguous(memory_format=layout)
    with torch.no_grad():
        nce_loss(torch.randn(4, WIDTH), trg)
    assert {tensor.data_ptr() for tensor in seen} == {trg.data_ptr()}


@pytest.mark.parametrize("shapes", [((5,), (7,)), ((2, 3), (4, 1)), ((2, 3, 2), (3, 2, 2))])
def test_modules(shapes):
    """Maps of sound and of video: as their places side by side in a map of one row."""
    shapes = [(4, WIDTH), *((4, WIDTH, *places) for places in shapes)] * 2
    maps = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    flat = [part if part.dim() == 2 else part.flatten(2)[:, :, None] for part in maps]
    locations = torch.tensor([0, 3, 1, 2]), torch.tensor([1, 0, 3, 3])
    losses = LossMultiNCE(20.0)(*maps, locations=locations)
    views = tuple(flat[:3]), tuple(flat[3:])
    truths = reference.multiscale_nce(*views, locations, clip=20.0)
    torch.testing.assert_close(losses, truths, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad(sum(parts), maps) for parts in (losses, truths)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    task, found = FeatureMapContrastiveTask("00, 01"), []
    for given in (maps, flat):
        torch.manual_seed(2)
        found.append(task(given[1:3], given[4:]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("trg", "message"),
    [
        ((4,), r"trg has shape \[4\]; it must be \[B, L, D\], \[B, D\] or a map \[B, D, h, w\]"),
        ((4, 3, 5, WIDTH), r"trg has shape \[4, 3, 5, 8\] and src \[4, 8\]; the channels of a map"),
        ((4, WIDTH, 3, 0), r"every size must be at least 1"),
        ((4, WIDTH + 1), r"their last sizes D must agree"),
    ],
)
def test_bad_input(trg, message):
    for function in (nce_log_prob, nce_loss, partial(nce_objective, mean_sq_weight=0.1)):
        with pytest.raises(ValueError, match=message):
            function(torch.randn(4, WIDTH), torch.randn(trg))
