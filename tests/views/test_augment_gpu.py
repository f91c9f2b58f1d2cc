"""Views on the GPU against the CPU, bit for bit; CUDA graphs, streams, waits of the host."""

from dataclasses import fields, replace

import pytest
import torch

from amdim_fast.views.augment import augment
from amdim_fast.views.op import RECORD_WORDS
from amdim_fast.views.params import POLICIES
from amdim_fast.views.preprocessing import center_view
from amdim_fast.views.sampling import sample_view_params
from amdim_fast.views.two_views import TwoViews
from tests.views.cases import HALF, any_params, seeded, smooth_noise, white_noise

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
SHARED, GLOBAL = 128, 400  # sizes of a few and of many tiles a view
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def pictures(sizes, seed=0):
    makers = (white_noise, smooth_noise)
    return [makers[i % 2](*size, seed + i) for i, size in enumerate(sizes)]


def batch(count, extent, seed=0):
    return torch.stack(pictures([extent] * count, seed))


def on_device(images):
    return images.to(DEVICE) if isinstance(images, torch.Tensor) else [i.to(DEVICE) for i in images]


def assert_equal_devices(images, params, size, **options):
    expected = augment(images, params, size=size, **options, **HALF)
    for same in (params, params.to(DEVICE)):
        found = augment(on_device(images), same, size=size, **options, **HALF)
        assert found.device.type == DEVICE
        assert found.stride() == expected.stride()
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 33, SHARED, 200, GLOBAL])
def test_batches(size, dtype, channels_last):
    for seed, extent in enumerate([(256, 256), (96, 33), (1, 1), (300, 7), (5, 700)]):
        images, params = batch(5, extent, seed), any_params([extent] * 5, 2, seed)
        assert_equal_devices(images, params, size, dtype=dtype, channels_last=channels_last)


@pytest.mark.parametrize("size", [17, SHARED, GLOBAL])
def test_lists_of_different_sizes(size):
    sizes = [(1, 1), (1, 90), (70, 1), (64, 64), (333, 200), (size, size), (31, 640)]
    assert_equal_devices(pictures(sizes), any_params(sizes, 2), size)


def test_many_tiles():
    images, params = batch(300, (40, 50)), any_params([(40, 50)] * 300, 2)
    assert_equal_devices(images, params, GLOBAL, dtype=torch.bfloat16)


def test_scratch_memory_in_global_memory():
    # Weights and one slab of rows of these images need 250 KB; the blocks take turns.
    images, params = batch(300, (5, 9000)), any_params([(5, 9000)] * 300, 2)
    assert_equal_devices(images, params, 64, dtype=torch.bfloat16)


@pytest.mark.parametrize("expanded", [(0,), (1, 2), (3,)])
def test_other_strides(expanded):
    shape = [1 if axis in expanded else n for axis, n in enumerate((4, 61, 80, 3))]
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(1))
    params = any_params([(61, 80)] * 4)
    expected = augment(images.expand(4, 61, 80, 3), params, size=33, **HALF)
    found = augment(images.to(DEVICE).expand(4, 61, 80, 3), params, size=33, **HALF)
    assert torch.equal(found.cpu(), expected)


def test_large_downscales():
    extent = (2000, 1500)
    assert_equal_devices(batch(2, extent), any_params([extent] * 2), 8)
    assert_equal_devices(batch(1, (3000, 8)), any_params([(3000, 8)]), 3)


def test_planar_and_sliced_batches():
    images, params = batch(6, (50, 60)), any_params([(50, 60)] * 6)
    expected = augment(images, params, size=32, **HALF)
    planar = images.to(DEVICE).movedim(-1, 1).contiguous()
    wide = torch.zeros(12, 50, 120, 4, dtype=torch.uint8, device=DEVICE)[::2, :, ::2, :3]
    for same in (planar, wide.copy_(images)):
        assert torch.equal(augment(same, params, size=32, **HALF).cpu(), expected)


def test_center_view():
    images = pictures([(96, 96), (41, 97), (333, 64)])
    for options in ({"resize": 70, "size": 64}, {"resize": 410, "size": GLOBAL}):
        expected = center_view(images, **options, **HALF)
        assert torch.equal(center_view(on_device(images), **options, **HALF).cpu(), expected)


def test_impossible_records_are_clamped_as_on_a_cpu():
    images = batch(40, (30, 50))
    words = torch.randint(-(2**31), 2**31, (2, 40, RECORD_WORDS), generator=seeded()).int()
    small = torch.randint(-60, 60, words.shape, generator=seeded(1)).int()
    table = torch.rand(3, 256, generator=seeded(2))
    for records in (words, small, torch.where(small > 0, small, words)):
        for size in (9, GLOBAL):
            expected, found = (
                torch.ops.amdim_fast.augment(
                    images.to(where), None, records.to(where), table.to(where), size, 30, 50, False
                )
                for where in ("cpu", DEVICE)
            )
            assert torch.equal(found.cpu(), expected)


def test_two_views_draw_the_same_on_any_device():
    images = batch(7, (96, 80))
    for name in ("stl10", "imagenet128"):
        module = TwoViews(name, dtype=torch.bfloat16, channels_last=True)
        expected = module(images, generator=seeded(3))
        assert torch.equal(module(images.to(DEVICE), generator=seeded(3)).cpu(), expected)


def drawn(seed, count=6):
    sizes = [(96, 96)] * count
    return sample_view_params(POLICIES["stl10"], sizes, generator=seeded(seed)).to(DEVICE)


@pytest.mark.parametrize("size", [64, GLOBAL])
def test_replay_of_a_cuda_graph_with_fresh_parameters(size):
    images, static = batch(6, (96, 96)).to(DEVICE), drawn(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            augment(images, static, size=size, **HALF)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = augment(images, static, size=size, **HALF)
    for seed in (1, 2):
        fresh = drawn(seed)
        for field in fields(fresh):
            getattr(static, field.name).copy_(getattr(fresh, field.name))
        images.copy_(batch(6, (96, 96), 10 * seed))
        graph.replay()
        assert torch.equal(captured, augment(images, fresh, size=size, **HALF))


def test_no_host_synchronisation():
    images, params = batch(6, (96, 96)).to(DEVICE), drawn(0)
    calls = [
        lambda: augment(images, params, size=64, **HALF),
        lambda: augment(list(images), params, size=64, dtype=torch.bfloat16, **HALF),
        lambda: TwoViews("stl10")(images),
    ]
    for call in calls:
        call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call in calls:
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_streams():
    sets = [(batch(40, (96, 96), seed).to(DEVICE), drawn(seed, 40)) for seed in range(2)]
    for size in (64, GLOBAL):
        expected = [augment(*one, size=size, **HALF) for one in sets]
        torch.cuda.synchronize()
        found = []
        for one in sets:
            with torch.cuda.stream(torch.cuda.Stream()):
                found.append(augment(*one, size=size, **HALF))
        torch.cuda.synchronize()
        for ours, truth in zip(found, expected, strict=True):
            assert torch.equal(ours, truth)


def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    images, params = batch(3, (50, 60)), any_params([(50, 60)] * 3)
    with torch.cuda.device(0):
        found = augment(images.to("cuda:1"), params, size=33, **HALF)
    assert found.device == torch.device("cuda:1")
    assert torch.equal(found.cpu(), augment(images, params, size=33, **HALF))


def test_torch_compile():
    images, params = batch(4, (96, 96)), any_params([(96, 96)] * 4)
    function = torch.compile(augment, fullgraph=True)
    expected = augment(images, params, size=33, **HALF)
    for same in (params, params.to(DEVICE)):
        assert torch.equal(function(images.to(DEVICE), same, size=33, **HALF).cpu(), expected)


def test_parameters_on_the_gpu_are_clamped_not_checked():
    images = batch(2, (20, 30))
    params = any_params([(20, 30)] * 2)
    outside = replace(params, crop=params.crop + 1000)
    corner = torch.tensor([19, 29, 1, 1], dtype=torch.int32).expand(2, 2, 4)
    found = augment(images.to(DEVICE), outside.to(DEVICE), size=9, **HALF)
    expected = augment(images, replace(params, crop=corner), size=9, **HALF)
    assert torch.equal(found.cpu(), expected)


def test_small_case_for_the_sanitizer():
    images, params = batch(2, (20, 31)).to(DEVICE), any_params([(20, 31)] * 2).to(DEVICE)
    for size in (9, GLOBAL):
        augment(images, params, size=size, **HALF)
    augment(list(images), params, size=9, channels_last=True, dtype=torch.float16, **HALF)
    torch.cuda.synchronize()


def test_capture_refuses_what_a_replay_could_not_copy():
    images = torch.zeros(2, 40, 40, 3, dtype=torch.uint8, device="cuda")
    params = sample_view_params(POLICIES["digits"], [(40, 40)] * 2)
    options = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    augment(images, params, **options)
    with (
        pytest.raises(RuntimeError, match="a CUDA graph cannot replay"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        augment(images, params, **options)
