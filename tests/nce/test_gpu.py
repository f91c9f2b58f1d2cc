"""What only a GPU shows of the contrastive ops; the arithmetic is judged in tests/kernels."""

import pytest
import torch
from amdim_fast.kernels.nce_tiles import TileSet

from amdim_fast import LossMultiNCE, last_plan, nce_log_prob, nce_loss, nce_objective
from amdim_fast.nce import layout, plan, reference, tiles, triton_fused
from tests.nce.cases import row_results_bytes

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


def general(loss, inputs, locations, upstream=1.0):
    """The four losses, and the gradients of their sum."""
    outputs = loss(*inputs, locations=locations)
    return [*outputs, *torch.autograd.grad(upstream * sum(outputs), inputs)]


def objective(loss, inputs, locations, upstream=1.0):
    """The same from one pass."""
    total, *outputs = loss.objective(*inputs, locations=locations)
    return [*outputs, *torch.autograd.grad(upstream * total, inputs)]


both = pytest.mark.parametrize("results", [general, objective])


def same(found, expected):
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def relative_error(value, truth):
    value, truth = value.detach().double(), truth.detach()
    return float((value - truth).norm() / truth.norm())


def test_plan_names_the_backend():
    LossMultiNCE(backend="triton")(*maps(8, 32), locations=draw(8))
    assert last_plan().backend == "triton"
    assert last_plan().products == "cublas"


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("budget", [0, None])
@pytest.mark.parametrize(("images", "width"), [(256, 1024), (130, 520), (67, 2560), (33, 132)])
def test_half_loss_no_worse_than_twice_eager(images, width, budget, dtype, results):
    inputs, locations = maps(images, width, dtype), draw(images)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]

    def judge(tensors):
        outputs = reference.multiscale_nce(tuple(tensors[:3]), tuple(tensors[3:]), locations)
        return [*outputs, *torch.autograd.grad(sum(outputs), tensors)]

    truth, eager = judge(wide), judge(inputs)
    loss = LossMultiNCE(tclip=10.0, memory_budget=budget, backend="triton")
    ours = results(loss, inputs, locations)
    for value, baseline, expected in zip(ours, eager, truth, strict=True):
        limit = 2 * relative_error(baseline, expected) + 1e-6
        assert relative_error(value, expected) <= limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("upstream", [1.0, 2.5, 65536.0])
def test_objective_of_several_chunks_is_no_worse_than_eager(monkeypatch, dtype, upstream):
    """Sums of gradients over chunks are as good as those of all rows."""
    monkeypatch.setattr(plan, "LEAST_ROWS", 100)
    monkeypatch.setattr(plan, "GPU_CHUNK_BYTES", 100 * 300 * 25 * 4)
    monkeypatch.setattr(layout, "_layouts", {})
    inputs, locations = maps(300, 512, dtype), draw(300)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]

    def judge(tensors):
        outputs = reference.multiscale_nce(tuple(tensors[:3]), tuple(tensors[3:]), locations)
        return torch.autograd.grad(upstream * sum(outputs), tensors)

    loss = LossMultiNCE(memory_budget=2**30, backend="triton")
    ours = objective(loss, inputs, locations, upstream)[4:]
    for pairing in last_plan().pairings:
        assert (pairing.mode, pairing.chunk_rows) == ("one_pass", 100)
    for value, baseline, expected in zip(ours, judge(inputs), judge(wide), strict=True):
        limit = relative_error(baseline, expected) + torch.finfo(dtype).eps / 2
        assert relative_error(value, expected) <= limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("images", "width"), [(130, 520), (300, 2048), (5, 24)])
def test_descriptors_load_what_pointers_load(monkeypatch, images, width, dtype):
    """Bit for bit; below compute capability 9.0 there are none."""
    inputs, locations = maps(images, width, dtype), draw(images)
    choose, features, found, described = tiles.choose, triton_fused._features, [], []
    monkeypatch.setattr(
        triton_fused, "_features", lambda *a: described.append(features(*a)) or described[-1]
    )
    for wanted in (False, True):

        def chosen(*key, wanted=wanted):
            row = choose(*key)
            fused = (t._replace(descriptors=wanted) for t in (row.forward, row.backward))
            return TileSet(True, *fused, row.read_forward, row.read_backward)

        monkeypatch.setattr(tiles, "choose", chosen)
        monkeypatch.setattr(layout, "_layouts", {})
        described.clear()
        found.append(general(LossMultiNCE(backend="triton", memory_budget=0), inputs, locations))
        assert {text.split(",")[0] for text in last_plan().kernels} == {"products in the kernels"}
        expected = wanted and torch.cuda.get_device_capability() >= (9, 0)
        assert {loads.descriptors for loads in described} == {expected}
    assert same(*found)


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


@pytest.mark.parametrize("negatives", ["other_images", "same_location"])
def test_products_past_int32(monkeypatch, negatives):
    """More than 2**31 products at once: kept by the forward, or in one chunk of the objective."""
    images, locations, width = 9_600, 25, 16
    src = torch.randn(images, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    trg = torch.randn(images, locations, width, device="cuda", dtype=torch.bfloat16)
    trg.requires_grad_()
    options = {"backend": "triton", "negatives": negatives}
    expected, found = [], []
    for most in (2**28, 2**35):
        monkeypatch.setattr(plan, "GPU_CHUNK_BYTES", most)
        monkeypatch.setattr(layout, "_layouts", {})
        loss, mean_sq = nce_loss(src, trg, memory_budget=most, **options)
        modes = [last_plan().pairings[0].mode]
        grads = torch.autograd.grad(loss + mean_sq, (src, trg))
        del loss, mean_sq
        total = nce_objective(src, trg, mean_sq_weight=1.0, memory_budget=2**35, **options)
        modes.append(last_plan().pairings[0].mode)
        rows = last_plan().pairings[0].chunk_rows
        one_pass = torch.autograd.grad(total.objective, (src, trg))
        expected.append(("recompute" if most == 2**28 else "keep", "one_pass", most == 2**35))
        found.append((*modes, rows == images))
        for grad in (*grads, *one_pass):
            assert grad.isfinite().all()
        if most == 2**28:
            truths = grads
        for values in (grads, one_pass):
            for value, truth in zip(values, truths, strict=True):
                assert relative_error(value, truth.double()) < 1e-2
    assert found == expected


@both
def test_bitwise_reproducible_over_twenty_runs(results):
    inputs, locations = maps(200, 256), draw(200)
    first = results(LossMultiNCE(backend="triton"), inputs, locations)
    for _ in range(19):
        assert same(results(LossMultiNCE(backend="triton"), inputs, locations), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_backward_of_an_objective_gives_the_same(dtype):
    inputs, locations = maps(64, 128, dtype), draw(64)
    total = LossMultiNCE(backend="triton").objective(*inputs, locations=locations).objective
    found = []
    for upstream in (1.0, 2.5, 1.0):
        given = torch.tensor(upstream, device="cuda")
        grads = torch.autograd.grad(total, inputs, given, retain_graph=True)
        found.append([grad.clone() for grad in grads])
        for grad in grads:
            grad.fill_(torch.nan)
    assert same(found[2], found[0])
    for scaled, unit in zip(found[1], found[0], strict=True):
        assert relative_error(scaled, 2.5 * unit.double()) <= 2 * torch.finfo(dtype).eps


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_replay_of_a_cuda_graph(results, dtype):
    """Forward and backward, with an upstream that is on the device."""
    inputs, locations = maps(64, 128, dtype), draw(64)
    upstream = torch.full((), 1.0, device="cuda")
    loss = LossMultiNCE(backend="triton")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            results(loss, inputs, locations, upstream)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(loss, inputs, locations, upstream)
    for value in (1.0, -3.0):
        with torch.no_grad():
            upstream.fill_(value)
            for tensor in inputs:
                tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        assert same(captured, results(loss, inputs, locations, upstream))


@both
def test_two_streams(results):
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
        assert same(ours, truth)


@both
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_host_does_not_wait(results, dtype, backend):
    inputs, locations = maps(64, 128, dtype), draw(64)
    upstream = torch.full((), 2.5, device="cuda")
    loss = LossMultiNCE(backend=backend)
    results(loss, inputs, locations, upstream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(loss, inputs, locations, upstream)
        loss.objective(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@both
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_memory_is_what_the_plan_says(results, dtype, backend):
    """Beside inputs and their gradients, and within 5 % and a few results of a row."""
    inputs, locations = maps(1024, 512, dtype), draw(1024)
    loss = LossMultiNCE(backend=backend)
    results(loss, inputs, locations)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results(loss, inputs, locations)
    taken = torch.cuda.max_memory_allocated() - before
    gradients = sum(tensor.nbytes for tensor in inputs)
    promised = gradients + last_plan().peak_bytes
    assert last_plan().kept_bytes <= taken <= 1.05 * promised + row_results_bytes(1024)


@both
def test_small_case_for_the_sanitizer(results):
    results(LossMultiNCE(backend="triton"), maps(5, 24), draw(5))
    torch.cuda.synchronize()
