"""``FeatureMapContrastiveTask`` against lightning-bolts' arithmetic, written out in float64."""

import math

import pytest
import torch

from amdim_fast import LossMultiNCE, last_plan
from amdim_fast.nce.feature_map_task import FeatureMapContrastiveTask


def feature_maps(sides=(1, 5, 7), images=4, width=6, dtype=torch.float64):
    return [
        tuple(
            torch.randn(images, width, side, side, dtype=dtype).requires_grad_() for side in sides
        )
        for _ in range(2)
    ]


def compare(anchor, positive, location, clip):
    """Loss and regularizer of one direction, one number at a time, as the bolts task has them."""
    images, width = anchor.shape[:2]
    anchor, positive = anchor.detach().flatten(2), positive.detach().flatten(2)
    count = positive.shape[2]
    total, squares = 0.0, 0.0
    for b in range(images):
        source = [anchor[b, d, location[b]].item() for d in range(width)]
        scores = torch.empty(images, count, dtype=torch.float64)
        for n in range(images):
            for at in range(count):
                raw = sum(source[d] * positive[n, d, at].item() for d in range(width))
                raw /= math.sqrt(width)
                squares += raw**2
                scores[n, at] = clip * math.tanh(raw / clip)
        negatives = sum(
            math.exp(scores[n, at]) for n in range(images) if n != b for at in range(count)
        )
        for at in range(count):
            total -= scores[b, at].item() - math.log(math.exp(scores[b, at]) + negatives)
    return total / (images * count), 5e-2 * squares / (images * images * count)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("clip", [10.0, 3.0])
@pytest.mark.parametrize("pair", ["01", "02", "11", "21", "00"])
def test_single_comparison(pair, clip, bidirectional):
    anchors, positives = feature_maps()
    a, p = (int(symbol) for symbol in pair)
    task = FeatureMapContrastiveTask(pair, clip, bidirectional)
    torch.manual_seed(3)
    losses, regularizer = task(anchors, positives)
    torch.manual_seed(3)
    places = anchors[a].shape[2] ** 2
    expected = []
    for source, target in ((anchors, positives), (positives, anchors))[: 1 + bidirectional]:
        expected.append(compare(source[a], target[p], torch.randint(0, places, (4,)), clip))
    loss, penalty = (sum(values) / len(expected) for values in zip(*expected, strict=True))
    assert losses.shape == (1,)
    assert losses.item() == pytest.approx(loss, rel=1e-10)
    assert regularizer.item() == pytest.approx(penalty, rel=1e-10)


def test_several_comparisons_are_their_single_ones():
    anchors, positives = feature_maps()
    pairs = ("01", "02", "11", "12", "11")
    generator = torch.Generator().manual_seed(1)
    losses, regularizer = FeatureMapContrastiveTask(", ".join(pairs))(
        anchors, positives, generator=generator
    )
    generator = torch.Generator().manual_seed(1)
    single = [
        FeatureMapContrastiveTask(pair)(anchors, positives, generator=generator) for pair in pairs
    ]
    torch.testing.assert_close(losses, torch.cat([loss for loss, _ in single]))
    torch.testing.assert_close(regularizer, sum(penalty for _, penalty in single))
    inputs = (*anchors, *positives)
    ours = torch.autograd.grad(losses.sum() + regularizer, inputs)
    expected = torch.autograd.grad(sum(loss.sum() + penalty for loss, penalty in single), inputs)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_default_comparisons_of_amdim_are_its_loss():
    anchors, positives = feature_maps()
    torch.manual_seed(0)
    losses, regularizer = FeatureMapContrastiveTask("01, 02, 11", tclip=20.0)(anchors, positives)
    torch.manual_seed(0)
    for _ in range(4):
        torch.randint(0, 1, (4,))
    locations = tuple(torch.randint(0, 25, (4,)) for _ in range(2))
    expected = LossMultiNCE(tclip=20.0)(*anchors, *positives, locations=locations)
    torch.testing.assert_close(losses, torch.stack(expected[:3]))
    torch.testing.assert_close(regularizer, expected[3])


def test_one_call_stacks_sources_of_one_target():
    FeatureMapContrastiveTask("01, 02, 11")(*feature_maps())
    assert len(last_plan().pairings) == 4


def test_tclip_is_honored():
    anchors, positives = feature_maps()
    with torch.no_grad():
        losses = [
            FeatureMapContrastiveTask("01", clip)(anchors, positives)[0]
            for clip in (0.1, 10.0, 100.0, None)
        ]
    assert losses[0].item() == pytest.approx(math.log(1 + 3 * 25), abs=0.2)
    assert len({loss.item() for loss in losses}) == 4
    assert all(loss.isfinite() for loss in losses)


def test_any_number_of_maps_and_any_sizes():
    """One task, maps more and fewer than comparisons, other sizes and sides in the next call."""
    task = FeatureMapContrastiveTask("01, 11")
    for sides in ((1, 5), (1, 5, 7), (3, 2), (1, 9, 4, 4)):
        losses, _ = task(*feature_maps(sides))
        assert losses.shape == (2,)
    wide = [(torch.randn(4, 6, 1, 1), torch.randn(4, 6, 2, 5)) for _ in range(2)]
    assert task(*wide)[0].isfinite().all()


def test_channels_that_differ_between_compared_maps_raise():
    """The maps of a ResNet-18 with the comparisons that lightning-bolts' command takes."""
    sizes = ((128, 4), (256, 2), (512, 1))
    anchors, positives = (
        [torch.randn(4, width, side, side) for width, side in sizes] for _ in range(2)
    )
    with pytest.raises(ValueError, match="channels differ") as caught:
        FeatureMapContrastiveTask("01, 02, 11")(anchors, positives)
    assert str(caught.value) == (
        "comparison '01' takes anchor_maps[0] of shape [4, 128, 4, 4] and positive_maps[1] of"
        " [4, 256, 2, 2], whose channels differ; project the maps to one width, such as each with"
        " an nn.Conv2d(channels, width, 1), or compare each with itself: '00, 11, 22'"
    )
    losses, _ = FeatureMapContrastiveTask("00, 11, 22")(anchors, positives)
    assert losses.shape == (3,)
    assert losses.isfinite().all()


def test_random_maps_follow_torch_alone():
    anchors, positives = feature_maps((2, 3, 4))
    task = FeatureMapContrastiveTask("0r, r1")
    runs = []
    for _ in range(2):
        torch.manual_seed(4)
        runs.append(torch.stack([task(anchors, positives)[0] for _ in range(12)]))
    assert torch.equal(*runs)
    torch.manual_seed(4)
    drawn = {tuple(task._index("r", 3, None) for _ in range(3)) for _ in range(50)}
    assert {index for indices in drawn for index in indices} == {0, 1, 2}


@pytest.mark.parametrize("comparisons", ["", "0", "01,", "0x", "012", "-1", "01; 02"])
def test_comparisons_that_cannot_be_read(comparisons):
    with pytest.raises(ValueError, match="each must be two characters"):
        FeatureMapContrastiveTask(comparisons)


@pytest.mark.parametrize(
    ("comparisons", "anchors", "positives", "message"),
    [
        ("03", 3, 3, "names map 3, but there are only 3 maps"),
        ("00", 3, 2, "anchor_maps has 3 maps and positive_maps 2"),
    ],
)
def test_maps_that_are_missing(comparisons, anchors, positives, message):
    given = feature_maps()
    with pytest.raises(ValueError, match=message):
        FeatureMapContrastiveTask(comparisons)(given[0][:anchors], given[1][:positives])


def test_inputs_that_do_not_fit_are_named():
    anchors, positives = feature_maps()
    with pytest.raises(ValueError, match=r"anchor_maps\[1\] has shape \[4, 6\]; it must be"):
        FeatureMapContrastiveTask("00")((anchors[0], torch.randn(4, 6)), positives[:2])
    with pytest.raises(ValueError, match=r"positive_maps\[1\] has 3 images and anchor_maps\[0\] 4"):
        FeatureMapContrastiveTask("01")(anchors, (positives[0], positives[1][:3], positives[2]))
    with pytest.raises(ValueError, match="tclip is -1"):
        FeatureMapContrastiveTask("01", tclip=-1)


def test_compiles_whole():
    anchors, positives = feature_maps(dtype=torch.float32)
    task = FeatureMapContrastiveTask("01, 02", bidirectional=False)
    eager = task(anchors, positives)
    compiled = torch.compile(task, fullgraph=True, backend="aot_eager")(anchors, positives)
    torch.testing.assert_close(compiled, eager)
