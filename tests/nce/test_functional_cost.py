"""What ``nce_log_prob`` and ``nce_loss`` compute and hold."""

import pytest
import torch

from amdim_fast import last_plan, nce_log_prob, nce_loss
from amdim_fast.nce import algorithm, plan, torch_passes
from amdim_fast.nce.inputs import NEGATIVES
from tests.nce.cases import LIBRARIES, lower_floors, use_library
from tests.nce.dispatched import Products
from tests.nce.test_functional import features


@pytest.fixture(autouse=True)
def _small_work(monkeypatch):
    lower_floors(monkeypatch)


def test_plan_follows_the_budget():
    src, trg = features(16, 4, 8, dtype=torch.float32)
    scores = 16 * 16 * 4 * 4
    nce_log_prob(src, trg)
    found = last_plan()
    assert (found.backend, found.pairings[0].mode, found.kept_bytes) == ("torch", "keep", scores)
    assert found.pairings[0].gemms == 3
    nce_log_prob(src, trg, memory_budget=0)
    found = last_plan()
    (pairing,) = found.pairings
    assert (pairing.mode, pairing.block_images, pairing.chunk_rows) == ("recompute", 1, 1)
    assert (found.kept_bytes, pairing.gemms) == (0, 4)
    with torch.no_grad():
        nce_log_prob(src, trg)
    assert last_plan().pairings[0].mode == "forward"
    for budget in (1_000, 5_000, 20_000, 100_000):
        nce_log_prob(src, trg, memory_budget=budget)
        found = last_plan()
        assert found.kept_bytes + found.work_bytes <= max(budget, 3 * scores // 16)


@pytest.mark.parametrize("same_location", [False, True])
@pytest.mark.parametrize("budget", [0, None])
def test_saved_for_backward_is_what_the_plan_says(budget, same_location):
    src, trg = features(24, 9, 16, dtype=torch.float32)
    negatives = NEGATIVES[same_location]
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nce_log_prob(src, trg, memory_budget=budget, negatives=negatives)
    extra = sum(t.nbytes for t in saved) - src.nbytes - trg.nbytes
    # Own scores, log-sums, and one mean of squares of each row.
    small = 4 * (24 * 9 + 24 * (9 if same_location else 1) + 24)
    assert extra == small + last_plan().kept_bytes
    assert (last_plan().kept_bytes == 0) == (budget == 0)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("mode", ["keep", "recompute"])
def test_frozen_inputs_cost_no_product(monkeypatch, mode, library):
    use_library(monkeypatch, library)
    monkeypatch.setattr(plan, "LEAST_CPU_BYTES", 2**20)
    counted = Products()
    for name in ("forward", "backward"):
        function = getattr(algorithm, name)

        def within(*given, function=function, **options):
            with counted:
                return function(*given, **options)

        monkeypatch.setattr(algorithm, name, within)
    for need_src, need_trg in ((True, True), (True, False), (False, True)):
        counted.count = 0
        src, trg = features(6, 4, 8, dtype=torch.float32)
        src.requires_grad_(need_src)
        trg.requires_grad_(need_trg)
        budget = {"keep": None, "recompute": 0}[mode]
        nce_loss(src, trg, memory_budget=budget)[0].backward()
        assert last_plan().pairings[0].mode == mode
        assert counted.count == 1 + (mode == "recompute") + need_src + need_trg
        assert (src.grad is not None, trg.grad is not None) == (need_src, need_trg)


def test_channels_last_map_is_not_copied(monkeypatch):
    seen = []
    scores = torch_passes.scores
    monkeypatch.setattr(torch_passes, "scores", lambda *a: seen.append(a[3]) or scores(*a))
    feature_map = torch.randn(6, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    trg = feature_map.permute(0, 2, 3, 1).flatten(1, 2)
    with torch.no_grad():
        nce_log_prob(torch.randn(6, 16), trg)
    pointers = {tensor.untyped_storage().data_ptr() for tensor in seen}
    assert pointers == {feature_map.untyped_storage().data_ptr()}
