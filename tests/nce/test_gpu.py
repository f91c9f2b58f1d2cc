"""What only a GPU shows of the contrastive op; the arithmetic is judged in tests/kernels."""

import pytest
import torch
from amdim_fast.kernels.nce_tiles import TileSet

from amdim_fast import LossMultiNCE, last_plan, nce_log_prob, nce_loss
from amdim_fast.nce import reference, tiles

pytestmark = pytest.mark.gpu


def maps(images, width, dtype=torch.bfloat16):
    return [
        torch.randn(images, side, side, width, device="cuda", dtype=dtype)
        .permute(0, 3, 1, 2)
        .requires_grad_()
        for side in (1, 5, 7) * 2
    ]


def draw(images):
    return tuple(torch.randint(0, 25, (images,), device="cuda") for _ in range(2))


def results(loss, inputs, locations):
    outputs = loss(*inputs, locations=locations)
    return [*outputs, *torch.autograd.grad(sum(outputs), inputs)]


def relative_error(value, truth):
    value, truth = value.detach().double(), truth.detach()
    return float((value - truth).norm() / truth.norm())


def test_plan_names_the_backend():
    LossMultiNCE(backend="triton")(*maps(8, 32), locations=draw(8))
    assert last_plan().backend == "triton"


@pytest.mark.parametrize("budget", [0, None])
@pytest.mark.parametrize(("images", "width"), [(256, 1024), (130, 520), (67, 2560)])
def test_bfloat16_loss_no_worse_than_twice_eager(images, width, budget):
    inputs, locations = maps(images, width), draw(images)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]

    def judge(tensors):
        outputs = reference.multiscale_nce(tuple(tensors[:3]), tuple(tensors[3:]), locations)
        return [*outputs, *torch.autograd.grad(sum(outputs), tensors)]

    truth, eager = judge(wide), judge(inputs)
    ours = results(
        LossMultiNCE(tclip=10.0, memory_budget=budget, backend="triton"), inputs, locations
    )
    for value, baseline, expected in zip(ours, eager, truth, strict=True):
        limit = 2 * relative_error(baseline, expected) + 1e-6
        assert relative_error(value, expected) <= limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("images", "width"), [(130, 520), (300, 2048), (5, 24)])
def test_descriptors_load_what_pointers_load(monkeypatch, images, width, dtype):
    """Bit for bit; below compute capability 9.0 the plan says that there are none."""
    inputs, locations = maps(images, width, dtype), draw(images)
    choose, found = tiles.choose, []
    for wanted in (False, True):

        def chosen(*key, wanted=wanted):
            row = choose(*key)
            fused = (t._replace(descriptors=wanted) for t in (row.forward, row.backward))
            return TileSet(True, *fused, row.read_forward, row.read_backward)

        monkeypatch.setattr(tiles, "choose", chosen)
        for budget in (0, None):
            loss = LossMultiNCE(backend="triton", memory_budget=budget)
            found.append(results(loss, inputs, locations))
            way = "descriptors" if torch.cuda.get_device_capability() >= (9, 0) else "pointers"
            way = way if wanted else "pointers"
            assert all(f"forward through {way}" in text for text in last_plan().kernels)
    for pointers, descriptors in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pointers, descriptors, strict=True))


def test_offsets_past_int32():
    """B * B * L passes 2**31; rows far apart agree with the same rows computed alone."""
    images, locations, width = 10_000, 25, 16
    src = torch.randn(images, width, device="cuda", dtype=torch.bfloat16)
    trg = torch.randn(images, locations, width, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        output = nce_log_prob(src, trg, backend="triton")
        raw = torch.einsum("bd,nld->bnl", src[-4:].double(), trg.double()) / width**0.5
        score = 20 * torch.tanh(raw / 20)
        own = torch.arange(images - 4, images, device="cuda")
        own_score = score[torch.arange(4), own]
        score[torch.arange(4), own] = -torch.inf
        neg = score.flatten(1).logsumexp(1, keepdim=True)
        expected = own_score - torch.logaddexp(own_score, neg)
    torch.testing.assert_close(output.log_prob[-4:].double(), expected, rtol=1e-5, atol=1e-4)


def test_kept_scores_past_int32():
    images, locations, width = 9_600, 25, 16
    src = torch.randn(images, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    trg = torch.randn(images, locations, width, device="cuda", dtype=torch.bfloat16)
    trg.requires_grad_()
    grads = []
    for budget in (2**28, 2**35):
        loss, mean_sq = nce_loss(src, trg, memory_budget=budget, backend="triton")
        grads.append(torch.autograd.grad(loss + mean_sq, (src, trg)))
    assert last_plan().pairings[0].mode == "keep"
    for a, b in zip(*grads, strict=True):
        assert relative_error(a, b.double()) < 1e-2


def test_bitwise_reproducible_over_twenty_runs():
    inputs, locations = maps(200, 256), draw(200)
    first = results(LossMultiNCE(backend="triton"), inputs, locations)
    for _ in range(19):
        again = results(LossMultiNCE(backend="triton"), inputs, locations)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_replay_of_a_cuda_graph():
    inputs, locations = maps(64, 128), draw(64)
    loss = LossMultiNCE(backend="triton")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            results(loss, inputs, locations)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(loss, inputs, locations)
    with torch.no_grad():
        for tensor in inputs:
            tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    expected = results(loss, inputs, locations)
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_two_streams():
    sets = [(maps(96, 128), draw(96)) for _ in range(2)]
    expected = [results(LossMultiNCE(backend="triton"), *one) for one in sets]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in sets]
    found = []
    for stream, one in zip(streams, sets, strict=True):
        with torch.cuda.stream(stream):
            found.append(results(LossMultiNCE(backend="triton"), *one))
    torch.cuda.synchronize()
    for ours, truth in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))


def test_no_host_synchronization():
    inputs, locations = maps(64, 128), draw(64)
    results(LossMultiNCE(backend="triton"), inputs, locations)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(LossMultiNCE(backend="triton"), inputs, locations)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_small_case_for_the_sanitizer():
    results(LossMultiNCE(backend="triton"), maps(5, 24), draw(5))
    torch.cuda.synchronize()
