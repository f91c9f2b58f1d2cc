"""Loads through tensor descriptors: bit for bit those through pointers, and when they apply."""

import pytest
import torch
from amdim_fast.kernels import nce_layout

from amdim_fast import last_plan, nce_log_prob
from amdim_fast.nce import triton_fused
from tests.kernels.cases import compare, plan_all, use
from tests.nce.cases import DEVICE, TILE, evaluate, features, upstream_like

WANTED = TILE._replace(descriptors=True)


@pytest.fixture
def taken(monkeypatch):
    """Whether each fused launch took descriptors."""
    found, features_of = [], triton_fused._features

    def noted(*arguments):
        result = features_of(*arguments)
        found.append(result.descriptors)
        return result

    monkeypatch.setattr(triton_fused, "_features", noted)
    return found


# Rows, columns and features off the tiles of 16 rows, 32 columns and 16 features, and on them.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("clip", [20.0, 100.0, None])
@pytest.mark.parametrize("size", [(11, 5, 24), (16, 2, 16), (17, 3, 40), (1, 1, 8)], ids=str)
def test_bit_for_bit_the_pointers(monkeypatch, taken, size, clip, dtype):
    src, trg = features(*size, sets=2, dtype=dtype)
    upstream = upstream_like(src, trg)
    results = []
    for way in ("fused", "descriptors"):
        use(monkeypatch, way)
        plan_all(monkeypatch, "recompute", images=8)
        results.append(evaluate(nce_log_prob, src, trg, upstream, clip=clip, backend="triton"))
        assert set(taken) == {way == "descriptors"}
        taken.clear()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("layout", ["after", "between"])
def test_what_lies_next_to_the_features_does_not_leak(monkeypatch, taken, layout):
    """NaN behind the last target, and between the rows of targets, in the same memory."""
    use(monkeypatch, "descriptors")
    plan_all(monkeypatch, "recompute", images=4)
    images, locations, width = 11, 3, 24
    src, trg = (tensor.detach() for tensor in features(images, locations, width))
    memory = torch.full((images + 2, locations, 40), float("nan"), device=DEVICE)
    if layout == "after":
        memory = torch.full((images + 2, locations, width), float("nan"), device=DEVICE)
    around = memory[1:-1, :, :width].copy_(trg).requires_grad_()
    assert nce_layout.loadable(around)
    compare("log_prob", src.requires_grad_(), around)
    assert set(taken) == {True}


def test_plan_says_why_not(monkeypatch):
    use(monkeypatch, "descriptors")
    src, trg = features(6, 4, 24)

    def plan_text():
        (text,) = last_plan().kernels
        return text

    nce_log_prob(src, trg, backend="triton", memory_budget=0)
    assert plan_text() == "products in the kernels"
    nce_log_prob(src, trg, backend="triton")
    assert plan_text() == "products by torch, since the scores are kept"
    nce_log_prob(src, trg, backend="triton", memory_budget=0, negatives="same_location")
    assert plan_text() == "products by torch, since negatives are of the same location"
    with torch.no_grad():
        nce_log_prob(src[:, :23], trg[..., :23], backend="triton")
    assert plan_text() == "products by torch, since D = 23 is not a multiple of 8"
    nce_log_prob(src, trg, backend="torch")
    assert plan_text() == "elementwise work in C++"


def strided(*shape, stride, offset=0):
    memory = torch.randn(offset + 4096, device=DEVICE, dtype=torch.float16)
    return memory.as_strided(shape, stride, offset)


@pytest.mark.parametrize(
    ("trg", "tile", "capability", "why"),
    [
        (strided(5, 4, 16, stride=(64, 16, 1)), WANTED, (9, 0), None),
        (strided(5, 4, 16, stride=(64, 16, 1)), WANTED, (12, 0), None),
        (strided(5, 4, 16, stride=(64, 16, 1)), WANTED, None, None),
        (strided(5, 4, 16, stride=(96, 24, 1)), WANTED, (9, 0), None),
        (strided(5, 1, 16, stride=(64, 3, 1)), WANTED, (9, 0), None),
        (strided(1, 4, 16, stride=(3, 16, 1)), WANTED, (9, 0), None),
        (strided(1, 1, 16, stride=(3, 3, 1)), WANTED, (9, 0), None),
        (strided(5, 4, 16, stride=(64, 16, 1)), TILE, (9, 0), "the tile table uses pointers"),
        (strided(5, 4, 16, stride=(64, 16, 1)), WANTED, (8, 9), "compute capability 8.9 has"),
        (strided(5, 4, 16, stride=(72, 16, 1)), WANTED, (9, 0), "are not rows of one"),
        (strided(5, 4, 16, stride=(16, 80, 1)), WANTED, (9, 0), "are not rows of one"),
        (strided(5, 4, 16, stride=(0, 0, 1)), WANTED, (9, 0), "are not rows of one"),
        (strided(5, 4, 16, stride=(32, 8, 1)), WANTED, (9, 0), "are not rows of one"),
    ],
)
def test_when_descriptors_apply(trg, tile, capability, why):
    assert nce_layout.loadable(trg)
    found = nce_layout.descriptor_obstacle(trg, tile, capability)
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
def test_what_is_not_is_copied(copied):
    trg = torch.randn(5, 4, 17 if copied else 24, device=DEVICE)[..., :16]
    found = triton_fused.loadable(trg)
    assert (found.data_ptr() != trg.data_ptr()) == copied
    assert nce_layout.loadable(found)
    assert torch.equal(found, trg)
