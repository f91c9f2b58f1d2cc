"""The passes over products of each row, and the fused ones, against torch in float64."""

import pytest
import torch

from amdim_fast.nce import algorithm, torch_passes, triton_passes
from amdim_fast.nce.algorithm import SourceGradient
from amdim_fast.nce.plan import PairingPlan
from tests.kernels import pass_cases
from tests.kernels.cases import fill_with_nan, use
from tests.kernels.pass_cases import PATTERNS, Case, check_gradients, check_results
from tests.nce.cases import relative_error

CLIPS = (20.0, 100.0, None)
TYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),  # the interpreter truncates to bf16
]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    use(monkeypatch, "elementwise", programs=6)
    fill_with_nan(monkeypatch)


def scale_of(clip):
    return 30.0 if clip == 100.0 else 2.0  # tanh beyond its series


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("same_location", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids="+".join)
@pytest.mark.parametrize("clip", CLIPS)
def test_every_upstream(clip, pattern, same_location, dtype):
    """Over the products, in chunks of rows that end off the sets; tiles that end off the images."""
    case = Case(clip=clip, same_location=same_location, dtype=dtype, scale=scale_of(clip))
    pairing, wide = pass_cases.make(case)
    upstream, wide_upstream = pass_cases.make_upstream(case, pattern)
    right, right_grads = pass_cases.truth(wide, case, wide_upstream)
    found = pass_cases.statistics(triton_passes, pairing, case, chunk=4)
    check_results(found, right, case)
    grads = pass_cases.gradients(
        triton_passes, pairing, case, found, upstream, chunk=4, overwrite=True
    )
    check_gradients(grads, right_grads, case)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("same_location", [False, True])
@pytest.mark.parametrize("clip", CLIPS)
def test_results_and_gradients_in_one_pass(clip, same_location, dtype):
    case = Case(clip=clip, same_location=same_location, dtype=dtype, scale=scale_of(clip))
    pairing, wide = pass_cases.make(case)
    upstream, wide_upstream = pass_cases.make_upstream(case, ("objective",))
    right, right_grads = pass_cases.truth(wide, case, wide_upstream)
    for overwrite in (False, True):
        found = pass_cases.make_results(case, torch.float32)
        options = {"overwrite": overwrite, "with_statistics": True, "chunk": 9}
        grads = pass_cases.gradients(triton_passes, pairing, case, found, upstream, **options)
        check_results(found, right, case)
        check_gradients(grads, right_grads, case)


# Own images in the middle, at the edges and outside of the targets, as on other ranks.
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("same_location", [False, True])
@pytest.mark.parametrize("offset", [-7, -6, -2, 1, 3, 6])
def test_slices_of_the_targets(offset, same_location, dtype):
    case = Case(
        targets=6, locations=8, offset=offset, same_location=same_location, dtype=dtype, images=6
    )
    pairing, wide = pass_cases.make(case)
    upstream, wide_upstream = pass_cases.make_upstream(case, ("log_prob", "mean_sq"))
    right, right_grads = pass_cases.truth(wide, case, wide_upstream)
    found = pass_cases.statistics(triton_passes, pairing, case)
    check_results(found, right, case)
    for block in (6, 4):
        options = {"block": block, "overwrite": block == 4}
        grads = pass_cases.gradients(triton_passes, pairing, case, found, upstream, **options)
        check_gradients(grads, right_grads, case)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("way", ["fused", "descriptors"])
@pytest.mark.parametrize("pattern", [*PATTERNS[:2], PATTERNS[-2], PATTERNS[-1]], ids="+".join)
@pytest.mark.parametrize("clip", CLIPS)
def test_fused(monkeypatch, clip, pattern, way, dtype):
    """Two sets in two row tiles, so one has rows of both; strips; and blocks off the tiles."""
    use(monkeypatch, way, programs=6)
    case = Case(images=11, targets=11, clip=clip, dtype=dtype, scale=scale_of(clip))
    pairing, wide = pass_cases.make(case)
    upstream, wide_upstream = pass_cases.make_upstream(case, pattern)
    right, right_grads = pass_cases.truth(wide, case, wide_upstream)
    for block in (11, 4):
        found, grads = pass_cases.fused(pairing, case, upstream, block)
        check_results(found, right, case)
        check_gradients(grads, right_grads, case)


@pytest.mark.parametrize("way", ["fused", "descriptors"])
@pytest.mark.parametrize("offset", [-13, -3, 2, 12])
def test_fused_slices_of_the_targets(monkeypatch, offset, way):
    use(monkeypatch, way, programs=6)
    case = Case(images=12, targets=9, offset=offset)
    pairing, wide = pass_cases.make(case)
    upstream, wide_upstream = pass_cases.make_upstream(case, ("log_prob", "mean_sq"))
    right, right_grads = pass_cases.truth(wide, case, wide_upstream)
    found, grads = pass_cases.fused(pairing, case, upstream, 4)
    check_results(found, right, case)
    check_gradients(grads, right_grads, case)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("same_location", [False, True])
def test_kept_scores_stay_as_they_are(same_location, dtype):
    """In blocks of the backward; gradients of blocks add up to those of the whole."""
    case = Case(images=6, targets=6, locations=8, same_location=same_location, dtype=dtype)
    pairing, wide = pass_cases.make(case)
    upstream, wide_upstream = pass_cases.make_upstream(case, ("loss", "mean_sq"))
    _, right = pass_cases.truth(wide, case, wide_upstream)
    results = pass_cases.make_results(case, torch.float32)
    pairing = pairing._replace(plan=PairingPlan("keep", case.rows, 4, 0, 0, 0, "planted"))
    kept = algorithm.forward(triton_passes, pairing, results)
    before = kept.clone()
    for _ in range(2):
        grad_src = SourceGradient(torch.empty(case.rows, case.width, device=kept.device))
        grad_trg = torch.empty_like(pairing.trg)
        algorithm.backward(
            triton_passes, pairing, results, upstream, kept, grad_src=grad_src, grad_trg=grad_trg
        )
        columns = case.targets * case.locations
        assert torch.equal(kept[:, :columns], before[:, :columns])
        matrix = wide.trg.reshape(columns, -1)
        rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert relative_error(grad_src.rows, right @ matrix) < 1e-5 + rounding
        assert relative_error(grad_trg.view(columns, -1), right.t() @ wide.src) < 1e-5 + rounding


@pytest.mark.parametrize("way", ["fused", "elementwise"])
@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e4])
def test_float16_gradients_of_any_size(monkeypatch, scale, way):
    """Upstreams of sets and rows that differ by powers of ten; float16 holds none of them raw."""
    use(monkeypatch, way)
    case = Case(images=20, targets=20, locations=4, dtype=torch.float16)
    pairing, wide = pass_cases.make(case)
    upstream = scale * torch.randn(case.sets, case.images, case.locations, device=wide.src.device)
    upstream[0] *= 1e-2
    upstream[:, ::3] *= 1e-2
    results = []
    for passes, inputs in ((triton_passes, pairing), (torch_passes, wide)):
        dtype = torch_passes.compute_dtype(inputs.src.dtype)
        rows = 0 if passes is triton_passes and way == "fused" else 9
        inputs = inputs._replace(
            plan=PairingPlan("recompute", rows, 8, 0, 0, 0, "planted"), first_own=0
        )
        found = pass_cases.make_results(case, dtype)
        algorithm.forward(passes, inputs, found)
        room = torch.empty(case.rows, case.width, dtype=dtype, device=inputs.src.device)
        grad_src = SourceGradient(room)
        grad_trg = torch.empty_like(inputs.trg)
        algorithm.backward(
            *(passes, inputs, found, pass_cases.Upstream(log_prob=upstream.flatten().to(dtype))),
            *(None,),
            grad_src=grad_src,
            grad_trg=grad_trg,
        )
        results.append((grad_src.rows.view(case.sets, case.images, -1), grad_trg))
    (grad_src, ours), (true_src, true_trg) = results
    for index in range(2):
        assert relative_error(grad_src[index], true_src[index]) < 1e-3
    rounded = true_trg.half().double()
    half = torch.finfo(torch.float16).tiny
    assert ((ours.double() - rounded).abs() <= 4e-3 * rounded.abs().amax() + half).all()
