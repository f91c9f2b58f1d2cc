"""The backends hold no more than their plans promise, and no less."""

import pytest
import torch
from amdim_fast.kernels import launch

from amdim_fast import LossMultiNCE, last_plan, nce_log_prob, nce_objective
from amdim_fast.nce import algorithm, compiled_blocks, parts, plan, products, tiles, triton_fused
from amdim_fast.nce.inputs import NEGATIVES
from amdim_fast.nce.way import padded
from tests.nce.cases import LIBRARIES, features, lower_floors, tile_set, upstream_like, use_library
from tests.nce.dispatched import LargeTensors, tensors_of


def test_large_tensors_are_counted_while_they_live():
    with LargeTensors(100) as counted:
        a = torch.zeros(200)
        b = a.view(10, 20) + 1.0
        del a, b
        torch.zeros(150)
        torch.zeros(99)
    assert (counted.peak, counted.alive) == (1600, 0)


@pytest.fixture
def measured(monkeypatch):
    """Peaks of the passes, by name, of tensors with at least ``measured.least`` entries."""
    found = {}

    def measure(name):
        function = getattr(algorithm, name)

        def counting(passes, pairing, *given, **options):
            known = tensors_of((pairing.src, pairing.trg, given, options))
            with LargeTensors(counting.least, known) as counted:
                result = function(passes, pairing, *given, **options)
            found.setdefault(name, []).append(counted.peak)
            return result

        monkeypatch.setattr(algorithm, name, counting)
        return counting

    counters = [measure(name) for name in ("forward", "backward", "one_pass")]

    def of(least, call):
        found.clear()
        for counter in counters:
            counter.least = least
        call()
        return {name: max(peaks) for name, peaks in found.items()}

    return of


def close(found, promised):
    """Within 2 %."""
    return 0.98 * promised <= found <= 1.02 * promised


# Results and features are far smaller than scores, and pieces of scores larger than they.
SETS, IMAGES, LOCATIONS, WIDTH = 4, 63, 6, 8
LEAST = SETS * IMAGES * max(LOCATIONS, WIDTH) + 1


def large(dtype, sets=SETS, images=IMAGES, locations=LOCATIONS, width=WIDTH):
    return features(images, locations, width, sets=sets, dtype=dtype)


def general(src, trg, **options):
    out = nce_log_prob(src, trg, **options)
    of_log_prob, of_mean_sq = upstream_like(src, trg)
    ((out.log_prob * of_log_prob).sum() + (out.mean_sq * of_mean_sq).sum()).backward()


def objective(src, trg, **options):
    nce_objective(src, trg, mean_sq_weight=0.1, **options).objective.backward()


@pytest.fixture
def prepare(monkeypatch):
    """Sets up a way with pieces and blocks of so many bytes at most.

    "compiled" is the torch backend with elementwise work in C++, "torch" without it.

    Kernels are not run: the interpreter keeps their arguments for a while.
    """

    def of(way, piece_bytes=2**15, block_bytes=2**30):
        lower_floors(monkeypatch)
        monkeypatch.setattr(parts, "PIECE_BYTES", piece_bytes)
        monkeypatch.setattr(plan, "PREFERRED_BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(products, "PART_BYTES", 4096)
        # Scaled products are too small to be counted here; tests/nce/test_fake_gpu.py counts them.
        monkeypatch.setattr(parts, "SCALED_PART_BYTES", 4096)
        monkeypatch.setattr(parts, "_scaled_bytes", lambda *sizes: 0)
        if way == "torch":
            monkeypatch.setattr(compiled_blocks, "load_cpu", lambda: False)
        if way in WAYS:
            monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(way))
            monkeypatch.setattr(launch, "launch", lambda *arguments, **constants: None)
            monkeypatch.setattr(triton_fused, "check_multiplies", lambda src: None)
        return {"backend": "triton" if way in WAYS else "torch"}

    return of


WAYS = ("fused", "elementwise")
KINDS = [
    *[("torch", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)],
    *[("compiled", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)],
    *[(way, dtype) for way in WAYS for dtype in (torch.float32, torch.bfloat16, torch.float16)],
]


def bytes_of_scores(way, dtype):
    columns = IMAGES * LOCATIONS
    itemsize = 8 if dtype == torch.float64 else 4
    return SETS * IMAGES * (padded(columns) if way in WAYS else columns) * itemsize


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("share", [1.2, 0.3])
@pytest.mark.parametrize(("way", "dtype"), KINDS)
def test_kept_scores_and_blocks_take_what_the_plan_says(
    measured, prepare, way, dtype, share, negatives
):
    """With all scores kept, and blocks of all of them or of a few."""
    scores = bytes_of_scores(way, dtype)
    options = prepare(way, block_bytes=int(share * scores)) | {"negatives": negatives}
    budget = int(2.2 * scores)
    src, trg = large(dtype)
    peaks = measured(LEAST, lambda: general(src, trg, memory_budget=budget, **options))
    found = last_plan()
    (pairing,) = found.pairings
    assert (pairing.mode, found.kept_bytes) == ("keep", scores)
    assert found.kept_bytes + found.work_bytes <= budget
    assert (pairing.block_images < IMAGES) == (share < 1)
    assert close(peaks["backward"], pairing.block_bytes)
    assert scores <= peaks["forward"] <= scores + pairing.block_bytes


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("share", [0.4, 0.15])
@pytest.mark.parametrize(("way", "dtype"), KINDS)
def test_recomputed_blocks_take_what_the_plan_says(measured, prepare, way, dtype, share, negatives):
    options = prepare(way) | {"negatives": negatives}
    budget = int(share * bytes_of_scores(way, dtype))
    src, trg = large(dtype)
    peaks = measured(LEAST, lambda: general(src, trg, memory_budget=budget, **options))
    (pairing,) = last_plan().pairings
    assert (pairing.mode, pairing.kept_bytes) == ("recompute", 0)
    assert pairing.block_bytes <= budget
    assert 1 < pairing.block_images < IMAGES
    fused = way == "fused" and negatives == "other_images"
    assert (pairing.chunk_rows == 0) == fused
    # The forward takes one piece of two; in C++ tensors of this size are not counted.
    piece = 2**15 if way == "torch" and peaks["forward"] > peaks["backward"] - 2**15 else 0
    piece += parts.COMPILED_BYTES * (way == "compiled")
    assert pairing.block_bytes - piece <= max(peaks.values()) <= pairing.block_bytes
    assert (peaks["forward"] == 0) == fused


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("share", [3.1, 0.4, 0.15])
@pytest.mark.parametrize(("way", "dtype"), KINDS)
def test_chunks_of_one_pass_take_what_the_plan_says(
    measured, prepare, way, dtype, share, negatives
):
    options = prepare(way) | {"negatives": negatives}
    budget = int(share * bytes_of_scores(way, dtype))
    if dtype == torch.bfloat16:
        budget += IMAGES * LOCATIONS * WIDTH * 4
    src, trg = large(dtype)
    peaks = measured(LEAST, lambda: objective(src, trg, memory_budget=budget, **options))
    (pairing,) = last_plan().pairings
    assert pairing.mode == "one_pass"
    assert (pairing.chunk_rows < SETS * IMAGES) == (share < 1)
    assert pairing.block_bytes + pairing.sum_bytes <= budget
    sums = pairing.sum_bytes if IMAGES * LOCATIONS * WIDTH >= LEAST else 0
    assert close(peaks["one_pass"], pairing.block_bytes + sums)


@pytest.mark.parametrize("piece_bytes", [2**12, 2**30])
@pytest.mark.parametrize("call", [general, objective])
def test_pieces_of_one_image_and_of_all(measured, prepare, call, piece_bytes):
    """A piece takes one image at least, and all of a chunk or block at most."""
    options = prepare("torch", piece_bytes)
    src, trg = large(torch.float32)
    peaks = measured(LEAST, lambda: call(src, trg, memory_budget=2**19, **options))
    (pairing,) = last_plan().pairings
    assert pairing.block_bytes <= 2**19
    assert close(max(peaks.values()), pairing.block_bytes)


@pytest.mark.parametrize("way", ["torch", "compiled", *WAYS])
@pytest.mark.parametrize("clip", [20.0, None])
def test_without_gradients(measured, prepare, way, clip):
    options = prepare(way)
    src, trg = (tensor.detach() for tensor in large(torch.float32))
    budget = bytes_of_scores(way, torch.float32) // 2
    options |= {"memory_budget": budget, "clip": clip}
    peaks = measured(LEAST, lambda: nce_log_prob(src, trg, **options))
    (pairing,) = last_plan().pairings
    fused = way == "fused"
    assert (pairing.mode, pairing.sum_bytes, pairing.kept_bytes) == ("forward", 0, 0)
    # A plan counts two pieces.
    assert 0.8 * pairing.block_bytes <= peaks["forward"] <= pairing.block_bytes <= budget
    assert (pairing.block_bytes == 0) == fused


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["torch", "compiled", "elementwise"])
def test_sums_of_several_chunks_take_what_the_plan_says(
    measured, prepare, monkeypatch, way, dtype, chunks
):
    """Half types add up in float32: float16 in the gradients themselves, bfloat16 beside them."""
    options = prepare(way)
    images, locations, width = 64, 16, 64
    src, trg = large(dtype, 1, images, locations, width)
    scores, sums = images * images * locations * 4, images * locations * width * 4
    monkeypatch.setattr(plan, "DEFAULT_MEMORY_BUDGET", 3 * scores if chunks == 1 else scores // 3)
    budget = plan.DEFAULT_MEMORY_BUDGET + sums * (dtype == torch.bfloat16)
    peaks = measured(
        images * width + 1, lambda: objective(src, trg, memory_budget=budget, **options)
    )
    (pairing,) = last_plan().pairings
    assert -(-images // pairing.chunk_rows) >= chunks
    assert (pairing.chunk_rows == images) == (chunks == 1)
    assert pairing.sum_bytes == (sums if chunks > 1 and dtype == torch.bfloat16 else 0)
    assert pairing.block_bytes + pairing.sum_bytes <= budget
    assert close(peaks["one_pass"], pairing.block_bytes + pairing.sum_bytes)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_products_take_little_memory_of_their_own(measured, prepare, monkeypatch, dtype, library):
    """Parts are small where a library cannot write into a gradient in place, or converts it."""
    options = prepare("torch")
    use_library(monkeypatch, library)
    monkeypatch.setattr(products, "PART_BYTES", 2**16)
    images, locations, width = 16, 24, 1024
    src, trg = large(dtype, 1, images, locations, width)
    least = images * width + 1
    peaks = measured(least, lambda: objective(src, trg, memory_budget=2**30, **options))
    assert peaks["one_pass"] <= 2 * products.PART_BYTES


def test_several_pairings_keep_what_fits(prepare):
    options = prepare("torch", block_bytes=2**18)
    inputs = [torch.randn(48, 8, side, side).requires_grad_() for side in (1, 5, 7) * 2]
    saved = set()

    def pack(tensor):
        saved.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = LossMultiNCE(memory_budget=3 * 2**19, **options)(*inputs)
    found = last_plan()
    assert [pairing.mode for pairing in found.pairings] == ["keep"] * 2 + ["recompute"] * 2
    assert found.kept_bytes == sum(size for _, size in saved if size > 10**5)
    assert found.kept_bytes + found.work_bytes <= 3 * 2**19
    del outputs
