"""Loads through tensor descriptors: bit for bit those through pointers, and when they apply."""

import pytest
import torch
from amdim_fast.kernels import nce_layout

from amdim_fast import last_plan, nce_log_prob
from amdim_fast.nce import tiles, triton_problem
from amdim_fast.nce.plan import PairingPlan
from amdim_fast.nce.torch_backend import Pairing
from tests.nce.cases import DEVICE, TILE, check, evaluate, features, tile_set, upstream_like

WANTED = TILE._replace(descriptors=True)


def use(monkeypatch, way):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(way))
    monkeypatch.setattr(triton_problem, "PROGRAMS_PER_PROCESSOR", 9)


# Rows, columns and features off the tiles of 16 rows, 32 columns and 16 features, and on them.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("clip", [20.0, 100.0, None])
@pytest.mark.parametrize("size", [(11, 5, 24), (16, 2, 16), (17, 3, 40), (1, 1, 8)], ids=str)
def test_bit_for_bit_the_pointers(monkeypatch, size, clip, dtype):
    src, trg = features(*size, sets=2, dtype=dtype)
    upstream = upstream_like(src, trg)
    for budget in (0, None):
        results = []
        for way in ("fused", "descriptors"):
            use(monkeypatch, way)
            options = {"clip": clip, "backend": "triton", "memory_budget": budget}
            results.append(evaluate(nce_log_prob, src, trg, upstream, **options))
            assert f"forward through {'pointers' if way == 'fused' else way}" in plan_text()
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def plan_text():
    (text,) = last_plan().kernels
    return text


@pytest.mark.parametrize("layout", ["after", "between"])
def test_what_lies_next_to_the_features_does_not_leak(monkeypatch, layout):
    """NaN behind the last target, and between the rows of targets, in the same memory."""
    use(monkeypatch, "descriptors")
    images, locations, width = 11, 3, 24
    src, trg = (tensor.detach() for tensor in features(images, locations, width))
    memory = torch.full((images + 2, locations, 40), float("nan"), device=DEVICE)
    if layout == "after":
        memory = torch.full((images + 2, locations, width), float("nan"), device=DEVICE)
    around = memory[1:-1, :, :width].copy_(trg).requires_grad_()
    assert nce_layout.loadable(around)
    check(src.requires_grad_(), around, upstream_like(src, trg))
    assert "through descriptors" in plan_text()


def test_plan_says_why_not(monkeypatch):
    use(monkeypatch, "descriptors")
    src, trg = features(6, 4, 24)
    output = nce_log_prob(src, trg, backend="triton", memory_budget=0)
    assert plan_text() == "forward through descriptors; backward through descriptors"
    del output
    nce_log_prob(src, trg, backend="triton")
    assert plan_text().endswith("backward through products, since the forward kept them")
    nce_log_prob(src, trg, backend="triton", memory_budget=0, negatives="same_location")
    assert plan_text() == (
        "forward through pointers, since the targets of one location are not adjacent;"
        " backward through products, since negatives are of the same location"
    )
    with torch.no_grad():
        nce_log_prob(src[:, :23], trg[..., :23], backend="triton")
    assert plan_text() == "forward through products, since D = 23 is not a multiple of 8"
    nce_log_prob(src, trg, backend="torch")
    assert last_plan().kernels == ()


def strided(*shape, stride, offset=0):
    memory = torch.randn(offset + 4096, device=DEVICE, dtype=torch.float16)
    return memory.as_strided(shape, stride, offset)


@pytest.mark.parametrize(
    ("trg", "tile", "capability", "same_location", "why"),
    [
        (strided(5, 4, 16, stride=(64, 16, 1)), WANTED, (9, 0), False, None),
        (strided(5, 4, 16, stride=(64, 16, 1)), WANTED, (12, 0), False, None),
        (strided(5, 4, 16, stride=(64, 16, 1)), WANTED, None, False, None),
        (strided(5, 4, 16, stride=(96, 24, 1)), WANTED, (9, 0), False, None),
        (strided(5, 1, 16, stride=(64, 3, 1)), WANTED, (9, 0), False, None),
        (strided(1, 4, 16, stride=(3, 16, 1)), WANTED, (9, 0), False, None),
        (strided(1, 1, 16, stride=(3, 3, 1)), WANTED, (9, 0), False, None),
        (
            strided(5, 4, 16, stride=(64, 16, 1)),
            TILE,
            (9, 0),
            False,
            "the tile table uses pointers",
        ),
        (
            strided(5, 4, 16, stride=(64, 16, 1)),
            WANTED,
            (8, 9),
            False,
            "compute capability 8.9 has",
        ),
        (
            strided(5, 4, 16, stride=(64, 16, 1)),
            WANTED,
            (9, 0),
            True,
            "the targets of one location",
        ),
        (strided(5, 4, 16, stride=(72, 16, 1)), WANTED, (9, 0), False, "are not rows of one"),
        (strided(5, 4, 16, stride=(16, 80, 1)), WANTED, (9, 0), False, "are not rows of one"),
        (strided(5, 4, 16, stride=(0, 0, 1)), WANTED, (9, 0), False, "are not rows of one"),
        (strided(5, 4, 16, stride=(32, 8, 1)), WANTED, (9, 0), False, "are not rows of one"),
    ],
)
def test_when_descriptors_apply(trg, tile, capability, same_location, why):
    assert nce_layout.loadable(trg)
    found = nce_layout.descriptor_obstacle(trg, tile, capability, same_location)
    assert found is why if why is None else why in found


@pytest.mark.parametrize(
    ("tensor", "fits"),
    [
        (strided(5, 4, 16, stride=(64, 16, 1)), True),
        (strided(5, 4, 16, stride=(64, 16, 1), offset=8), True),
        (strided(5, 1, 16, stride=(64, 3, 1)), True),
        (strided(5, 4, 16, stride=(64, 16, 1), offset=4), False),
        (strided(5, 4, 16, stride=(68, 16, 1)), False),
        (strided(5, 4, 16, stride=(64, 17, 1)), False),
        (strided(5, 4, 12, stride=(48, 16, 1)), False),
        (strided(5, 4, 16, stride=(128, 32, 2)), False),
    ],
)
def test_what_is_loaded_in_place(tensor, fits):
    assert nce_layout.loadable(tensor) == fits


@pytest.mark.parametrize("copied", [False, True])
def test_what_is_not_is_copied_once(monkeypatch, copied):
    use(monkeypatch, "descriptors")
    src = torch.randn(1, 5, 16, device=DEVICE)
    trg = torch.randn(5, 4, 17 if copied else 24, device=DEVICE)[..., :16]
    problem = triton_problem.make_problem(
        Pairing(src, trg, 20.0, False, PairingPlan("", 5, 0, 0)), 0
    )
    assert (problem.trg.data_ptr() != trg.data_ptr()) == copied
    assert torch.equal(problem.trg, trg)
    planned = triton_problem.make_problem(problem.pairing, 0, copy=False)
    assert planned.trg.is_meta == copied
    assert planned.forward_route == problem.forward_route
