"""Posterior maps, their place in the picture, and what is written."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from amdim_fast.model.amdim import AMDIM
from amdim_fast.model.encoder import Encoder
from amdim_fast.segmentation.posterior import (
    colors,
    enlarge,
    overlay,
    posterior_maps,
    save_posterior,
    segment,
    segment_picture,
)
from amdim_fast.views.sheets import write_png


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AMDIM(32, 2, 8, 1, components=3, tau=2.0, tclip=7.0).eval()


def planted(images=6, side=4):
    """Component 0 of an image points at its upper half, component 1 at its lower half."""
    own = torch.eye(2 * images)[:, :, None, None].reshape(2, images, 2 * images, 1, 1)
    upper, lower = own.expand(-1, -1, -1, side // 2, side)
    return 20 * own.flatten(2), torch.cat([upper, lower], 2)


def test_planted_halves_are_found():
    components, feature_map = planted()
    posterior = posterior_maps(components, feature_map)
    assert posterior.shape == (6, 2, 4, 4)
    torch.testing.assert_close(posterior.sum(1), torch.ones(6, 4, 4))
    segments = posterior.argmax(1)
    assert (segments[:, :2] == 0).all()
    assert (segments[:, 2:] == 1).all()
    swapped = posterior_maps(components.flip(0), feature_map)
    torch.testing.assert_close(swapped, posterior.flip(1))


def loops(components, feature_map, tau, clip, bank):
    """One number at a time."""
    count, images, width = components.shape
    maps = feature_map.flatten(2)
    posterior = torch.empty(images, count, maps.shape[2], dtype=torch.float64)

    def score(k, b, vector):
        raw = float(components[k, b] @ vector) / math.sqrt(width)
        return raw if clip is None else clip * math.tanh(raw / clip)

    for b in range(images):
        others = bank if bank is not None else torch.cat([feature_map[:b], feature_map[b + 1 :]])
        vectors = others.permute(0, 2, 3, 1).flatten(0, 2)
        neg = [sum(math.exp(score(k, b, vector)) for vector in vectors) for k in range(count)]
        for at in range(maps.shape[2]):
            pos = [math.exp(score(k, b, maps[b, :, at])) for k in range(count)]
            weight = [(p / (p + n)) ** tau for p, n in zip(pos, neg, strict=True)]
            posterior[b, :, at] = torch.tensor(weight, dtype=torch.float64) / sum(weight)
    return posterior.view(images, count, *feature_map.shape[2:])


@pytest.mark.parametrize("banked", [False, True])
@pytest.mark.parametrize(("tau", "clip"), [(1.0, 3.0), (2.5, None)])
def test_equals_loops(tau, clip, banked):
    components = torch.randn(3, 4, 6, dtype=torch.float64)
    feature_map = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    bank = torch.randn(70, 6, 3, 2, dtype=torch.float64) if banked else None
    ours = posterior_maps(components, feature_map, tau=tau, clip=clip, bank=bank)
    expected = loops(components, feature_map, tau, clip, bank)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_one_image_needs_a_bank():
    components, feature_map = planted()
    with pytest.raises(ValueError, match="1 image, so no negatives; give more images or a bank"):
        posterior_maps(components[:, :1], feature_map[:1])
    alone = posterior_maps(components[:, :1], feature_map[:1], bank=feature_map[1:])
    torch.testing.assert_close(alone, posterior_maps(components, feature_map)[:1])
    with pytest.raises(ValueError, match="bank has width 3; it must be 12"):
        posterior_maps(components, feature_map, bank=torch.randn(4, 3, 2, 2))
    with pytest.raises(ValueError, match=r"components has shape \[6, 12\]"):
        posterior_maps(components[0], feature_map)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("scale", ["r5", "r7"])
def test_enlarged_locations_lie_on_their_receptive_fields(size, scale):
    encoder = Encoder(size, 2, 8, 1).eval()
    for parameter in encoder.parameters():
        torch.nn.init.uniform_(parameter, 0.01, 0.1)
    image = torch.rand(1, 3, size, size, requires_grad=True)
    feature_map = getattr(encoder(image), scale)
    side = feature_map.shape[-1]
    rows = torch.arange(size)
    for at in range(1, side - 1):
        (grad,) = torch.autograd.grad(feature_map[0, :, at, 1].sum(), image, retain_graph=True)
        seen = rows[grad.abs().sum((0, 1, 3)) > 0].double()
        centre = (seen.min() + seen.max()).item() / 2
        ramp = torch.arange(side, dtype=torch.float64)[:, None].expand(1, 1, side, side)
        column = enlarge(ramp, size)[0, 0, :, size // 2]
        between = 0.5 * (column[math.floor(centre)] + column[math.ceil(centre)])
        assert between.item() == pytest.approx(at)


def test_segment_is_the_posterior_of_the_model(model):
    images = torch.randn(5, 3, 32, 32)
    maps = model.encoder(images)
    components = model.mixture(maps.r1)
    for scale in ("r5", "r7"):
        expected = posterior_maps(components, getattr(maps, scale), tau=2.0, clip=7.0)
        assert torch.equal(segment(model.train(), images, scale=scale), expected)
        assert model.training
        model.eval()
    with pytest.raises(ValueError, match="scale is 'r1'; it must be one of r7, r5"):
        segment(model, images, scale="r1")
    with pytest.raises(ValueError, match="no components; train one with components=K"):
        segment(AMDIM(32, 2, 8, 1), images)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_sliding_windows_are_averaged(model, batch_size):
    picture = torch.randn(3, 32, 45)
    bank = model.encoder(torch.randn(4, 3, 32, 32)).r7.detach()
    ours = segment_picture(model, picture, stride=10, bank=bank, batch_size=batch_size)
    total, hits = torch.zeros(3, 32, 45), torch.zeros(32, 45)
    for left in (0, 10, 13):
        window = segment(model, picture[None, :, :, left : left + 32], bank=bank)
        total[:, :, left : left + 32] += enlarge(window, 32)[0]
        hits[:, left : left + 32] += 1
    torch.testing.assert_close(ours, total / hits)
    torch.testing.assert_close(ours.sum(0), torch.ones(32, 45))


def test_windows_are_each_others_negatives_without_a_bank(model):
    picture = torch.randn(3, 40, 32)
    windows = torch.stack([picture[:, :32], picture[:, 8:]])
    expected = enlarge(segment(model, windows), 32)
    ours = segment_picture(model, picture, stride=8)
    torch.testing.assert_close(ours[:, :8], expected[0, :, :8])
    torch.testing.assert_close(ours[:, 32:], expected[1, :, 24:])


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 31, 40), {}, "must be .C, H, W. of 32 px or more"),
        ((3, 32, 32), {}, "one window, so no negatives; give a bank"),
        ((3, 40, 40), {"stride": 0}, "stride is 0; it must be from 1 to 32"),
        ((3, 90, 40), {"stride": 33}, "stride is 33"),
    ],
)
def test_bad_pictures(model, shape, options, message):
    with pytest.raises(ValueError, match=message):
        segment_picture(model, torch.randn(shape), **options)


def test_overlay_blends_the_likeliest_component():
    picture = torch.full((2, 2, 3), 100, dtype=torch.uint8)
    posterior = torch.tensor([[[0.9, 0.1], [0.9, 0.1]], [[0.1, 0.9], [0.1, 0.9]]])
    first, second = colors(2).float()
    blended = overlay(picture, posterior, opacity=0.25)
    torch.testing.assert_close(blended[:, 0].float(), (75 + 0.25 * first).round().expand(2, 3))
    torch.testing.assert_close(blended[:, 1].float(), (75 + 0.25 * second).round().expand(2, 3))
    assert torch.equal(overlay(picture, posterior, opacity=0), picture)
    assert len({tuple(color) for color in colors(8).tolist()}) == 8
    with pytest.raises(ValueError, match="opacity is 2; it must"):
        overlay(picture, posterior, opacity=2)
    with pytest.raises(ValueError, match=r"picture is torch.uint8 \[2, 1, 3\]; it must be uint8"):
        overlay(picture[:, :1], posterior)


def test_files_are_whole_or_absent(tmp_path):
    picture = torch.arange(24, dtype=torch.uint8).view(2, 4, 3)
    write_png(tmp_path / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture.numpy())
    save_posterior(tmp_path / "a.npz", r7=torch.ones(2, 3), dense=torch.zeros(4))
    with np.load(tmp_path / "a.npz") as found:
        assert found["r7"].shape == (2, 3)
        assert found["dense"].dtype == np.float32
    with pytest.raises(TypeError):
        write_png(tmp_path / "b.png", torch.ones(2, 4, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.png"]
