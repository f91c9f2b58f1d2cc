"""Negatives from every rank: 1 to 4 gloo processes against the whole batch on one."""

import pytest
import torch
from torch import nn

from amdim_fast import FeatureMapContrastiveTask, LossMultiNCE, nce_log_prob
from amdim_fast.nce import reference, reference_mixture
from tests.nce import group_cases as cases
from tests.nce import group_inputs as inputs
from tests.processes import found_by_ranks

WORLDS = (1, 2, 3, 4)
SECONDS = 300
LOSS, GRADIENT = 1e-6, 1e-5
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of each world size, started once, what each rank found."""
    return found_by_ranks(cases.__file__, tmp_path_factory.mktemp("ranks"), SECONDS)


def error(value, truth):
    value, truth = value.double(), truth.detach().double()
    return float((value - truth).norm() / truth.norm().clamp_min(1e-30))


def joined(parts, dim=0):
    return torch.cat(list(parts), dim)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("index", range(len(cases.LOG_PROB_CASES)))
def test_log_prob(found, world, index):
    dtype, clip, negatives, _ = cases.LOG_PROB_CASES[index]
    ours = [rank["log_prob"][index] for rank in found(world)]
    src, trg, upstream, of_mean_sq = (item.double() for item in inputs.log_prob_inputs(dtype))
    src, trg = src.requires_grad_(), trg.requires_grad_()
    truth = reference.nce_log_prob(src, trg, clip=clip, negatives=negatives)
    objective = (truth.log_prob * upstream).sum() + (truth.mean_sq * of_mean_sq).sum()
    grads = torch.autograd.grad(objective, (src, trg))
    loss, gradient = (LOSS, GRADIENT) if dtype == torch.float32 else (1e-13, 1e-12)
    for place, expected in enumerate((truth.log_prob, truth.score)):
        assert error(joined((rank[place] for rank in ours), 1), expected) < loss
    for rank in ours:
        assert error(rank[2], truth.mean_sq) < loss
        assert torch.equal(rank[2], ours[0][2])
    assert error(joined((rank[3] for rank in ours), 1), grads[0]) < gradient
    assert error(joined(rank[4] for rank in ours), grads[1]) < gradient


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("index", range(len(cases.MORE_CASES)))
def test_more_targets(found, world, index):
    """Hard negatives of every rank are negatives of all sources."""
    ours = [rank["more"][index] for rank in found(world)]
    src, trg, upstream, of_mean_sq = inputs.log_prob_inputs(torch.float64)
    src, trg = src.requires_grad_(), torch.cat([trg, inputs.hard_negatives()]).requires_grad_()
    truth = reference.nce_log_prob(src, trg, negatives=cases.MORE_CASES[index][0])
    objective = (truth.log_prob * upstream).sum() + (truth.mean_sq * of_mean_sq).sum()
    grads = torch.autograd.grad(objective, (src, trg))
    for place, expected in enumerate((truth.log_prob, truth.score)):
        assert error(joined((rank[place] for rank in ours), 1), expected) < 1e-13
    for rank in ours:
        assert error(rank[2], truth.mean_sq) < 1e-13
    assert error(joined((rank[3] for rank in ours), 1), grads[0]) < 1e-12
    images = inputs.IMAGES // world
    of_trg = [rank[4][:images] for rank in ours] + [rank[4][images:] for rank in ours]
    assert error(joined(of_trg), grads[1]) < 1e-12


@pytest.mark.parametrize("world", WORLDS)
def test_clip_with_a_learned_scale(found, world):
    """Plain cross-entropy of the whole batch, in both directions."""
    ranks = [rank["clip"] for rank in found(world)]
    leaves = [item.requires_grad_() for item in inputs.image_and_text()]
    leaves.append(torch.tensor(5.0, dtype=torch.float64, requires_grad=True))
    logits, labels = leaves[2] * leaves[0] @ leaves[1].T, torch.arange(inputs.IMAGES)
    losses = [torch.nn.functional.cross_entropy(part, labels) for part in (logits, logits.T)]
    truth = sum(losses) * inputs.IMAGES
    grads = torch.autograd.grad(sum(losses), leaves)
    assert error(sum(rank[0] for rank in ranks), truth) < 1e-13
    assert error(joined(rank[1] for rank in ranks), grads[0]) < 1e-12
    assert error(joined(rank[2] for rank in ranks), grads[1]) < 1e-12
    assert error(sum(rank[3] for rank in ranks), grads[2]) < 1e-12


def truth_of(name, dtype):
    """Losses and gradients of the whole batch in float64; the task's of one process."""
    features, places = inputs.maps(dtype, 3 if name == "mixture" else None)
    features = [item.double().requires_grad_() for item in features]
    if name == "multi":
        views = tuple(features[:3]), tuple(features[3:])
        losses = reference.multiscale_nce(*views, places, clip=20.0, reg_weight=0.3)
    elif name == "mixture":
        views = tuple(features[:3]), tuple(features[3:])
        losses = reference_mixture.multiscale_mixture(
            *views, places, tau=2.0, alpha=0.3, clip=20.0, reg_weight=0.3
        )
    else:
        views = [[features[i][:, :, None, None], *features[i + 1 : i + 3]] for i in (0, 3)]
        task = FeatureMapContrastiveTask("01, 02", tclip=20.0)
        losses = [part for values in task(*views) for part in values.view(-1)]
    return torch.stack(list(losses)), torch.autograd.grad(sum(losses), features)


def loss_errors(ranks, truth):
    """Of the mean of the ranks' losses, and the largest of the gradients."""
    losses, grads = truth
    mean = torch.stack([rank[0] for rank in ranks]).mean(0)
    dims = [1 if grad.dim() == 3 else 0 for grad in grads]
    ours = [joined([rank[1][i] for rank in ranks], dim) for i, dim in enumerate(dims)]
    pairs = zip(ours, grads, strict=True)
    return error(mean, losses), max(error(*pair) for pair in pairs)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["multi", "mixture", "task"])
def test_losses(found, world, dtype, name):
    of_loss, of_grads = loss_errors(
        [rank[name, dtype] for rank in found(world)], truth_of(name, dtype)
    )
    loss, gradient = (LOSS, GRADIENT) if dtype == torch.float32 else (1e-13, 1e-12)
    assert of_loss < loss
    assert of_grads < gradient


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("plant", ["average", "local_count", "wrong_order"])
def test_planted_errors_are_caught(found, world, plant):
    ranks = [rank["planted"][plant] for rank in found(world)]
    _, of_grads = loss_errors(ranks, truth_of("multi", torch.float32))
    assert of_grads > 100 * GRADIENT


def layers(parameters):
    """Each weight and its bias as one vector."""
    pairs = zip(parameters[::2], parameters[1::2], strict=True)
    return [nn.utils.parameters_to_vector(pair) for pair in pairs]


@pytest.mark.parametrize("world", WORLDS)
def test_training_stays_with_one_process(found, world):
    """In float64 every tensor; in float32 every layer, as some sums for a bias nearly cancel."""
    for key, dtype in (("train32", torch.float32), ("train64", torch.float64)):
        ranks = [rank[key] for rank in found(world)]
        losses, first, last = cases.train(0, 1, None, dtype)
        mean = torch.stack([rank[0] for rank in ranks]).mean(0)
        assert losses[-1] < 0.9 * losses[0]
        loss, gradient = (LOSS, LOSS) if dtype == torch.float32 else (1e-13, 1e-12)
        assert error(mean[0], losses[0]) < loss
        assert error(mean, losses) < 10 * loss
        for rank in ranks:
            tensors, right = rank[1] + rank[2], first + last
            if dtype == torch.float32:
                tensors, right = layers(tensors), layers(right)
            for ours, expected in zip(tensors, right, strict=True):
                assert error(ours, expected) < gradient
            for ours, others in zip(rank[2], ranks[0][2], strict=True):
                assert torch.equal(ours, others)


def test_half_precision_features(found):
    ranks = [rank["half"] for rank in found(2)]
    src, trg, upstream, of_mean_sq = inputs.log_prob_inputs(torch.bfloat16)
    src, trg = src.requires_grad_(), trg.requires_grad_()
    out = nce_log_prob(src, trg)
    objective = (out.log_prob * upstream).sum() + (out.mean_sq * of_mean_sq).sum()
    grads = torch.autograd.grad(objective, (src, trg))
    assert ranks[0][0].dtype == torch.float32
    assert ranks[0][3].dtype == torch.bfloat16
    assert error(joined((rank[0] for rank in ranks), 1), out.log_prob) < LOSS
    rounding = torch.finfo(torch.bfloat16).eps
    assert error(joined((rank[3] for rank in ranks), 1), grads[0]) < rounding
    assert error(joined(rank[4] for rank in ranks), grads[1]) < rounding


def leaves(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    return (
        [tree]
        if not isinstance(tree, (list, tuple))
        else [x for part in tree for x in leaves(part)]
    )


def test_every_run_gives_the_same_bits(found, tmp_path):
    first, second = found(3), found_by_ranks(cases.__file__, tmp_path, SECONDS)(3)
    compared = 0
    for one, two in zip(leaves(first), leaves(second), strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, two)
            compared += 1
    assert compared > 500
    for rank in first:
        for one, two in zip(
            leaves(rank["multi", torch.float32]), leaves(rank["again"]), strict=True
        ):
            assert torch.equal(one, two)


@pytest.mark.parametrize("world", WORLDS)
def test_saved_bytes_are_linear_in_the_batch(found, world):
    for rank in found(world):
        one, two, three = rank["bytes"]
        assert two - one == three - two
        # Of one more image on every rank: its features and own scores; W sources, own scores,
        # log-sums and means of squares.
        own, everyone = inputs.WIDTH * (1 + 49) + 49, world * (inputs.WIDTH + 49 + 1 + 1)
        assert two - one == 12 * 4 * (own + everyone)


@pytest.mark.parametrize("world", WORLDS[1:])
def test_bytes_received_are_those_of_the_model(found, world):
    width, images, item = 128, 2, 4
    # Of each direction: r1 and the drawn 5x5 source, forward and backward; log-sums of three costs
    # twice; own scores and their gradients at 2 * 25 + 49 locations.
    row = 2 * (2 * 2 * width + 3 * 2 + 2 * (2 * 25 + 49))
    scalars = 2 * 6
    expected = (world - 1) * item * (images * row + scalars)
    gathered_targets = (world - 1) * item * images * 2 * 2 * (25 + 49) * width
    for rank in found(world):
        assert rank["traffic"] == expected
        assert rank["traffic"] * 20 < gathered_targets


SENTENCES = {
    "dtype": ("TypeError", "src is torch.int64; it must be"),
    "width": ("ValueError", "their last sizes D must agree"),
    "clip": ("ValueError", "clip is -1.0; it must be greater than 0"),
    "more targets": ("ValueError", "only the values may differ"),
    "fewer targets": ("ValueError", "trg has 2 images and src 3; trg[b] is the positive of src[b]"),
    "scale": ("ValueError", "scale is 0.0; it must be a finite number greater than 0"),
    "positive": ("ValueError", "positive has an entry twice; each source must have a target"),
    "batch": ("ValueError", "images; these must be equal: drop the last, incomplete batch"),
    "locations of a map": ("ValueError", "only the values may differ"),
    "another clip": ("ValueError", "only the values may differ"),
    "needs": ("ValueError", "only the values may differ"),
    "places short": ("ValueError", "locations[0] has shape"),
    "places outside": ("ValueError", "locations has an entry outside 0..3"),
    "views": ("ValueError", "x1 has shape [2, 3, 32, 32] and x2 [1, 3, 32, 32]"),
}


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("name", SENTENCES)
def test_an_error_on_one_rank_is_raised_on_all(found, world, name):
    said = [rank["bad"][name] for rank in found(world)]
    kind, part = SENTENCES[name]
    assert said == [said[0]] * world
    assert said[0][0] == kind
    assert part in said[0][1]
    assert "\n" not in said[0][1]
    if name not in ("batch", "locations of a map", "another clip", "needs", "more targets"):
        assert said[0][1].startswith(f"rank {world - 1}: ")
    assert [rank["bad"]["good"] for rank in found(world)] == [None] * world


def test_the_compiled_graph_is_whole_and_equal(found):
    for rank in found(2):
        for eager, *graphs in zip(*rank["compiled"], strict=True):
            for whole in graphs:
                torch.testing.assert_close(whole, eager, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("world", WORLDS)
def test_the_objective_is_the_sum_of_the_losses(found, world):
    for rank in found(world):
        (*ours, attached), (*losses, of_losses) = rank["objective"]
        assert not attached.any()
        assert of_losses.all()
        for one, two in zip(ours, losses, strict=True):
            assert error(one, two) < LOSS


def test_opcheck(found):
    assert found(1)[0]["opcheck"]


def test_a_random_map_is_refused():
    # Any value but None: the sentence comes before the group is looked at.
    with pytest.raises(ValueError, match="would draw different maps for 'r'; name the maps"):
        FeatureMapContrastiveTask("0r", group=object())


def test_without_a_group_nothing_changes():
    features, places = inputs.maps()
    found = LossMultiNCE(20.0, 0.3)(*features, locations=tuple(places))
    truth, _ = truth_of("multi", torch.float32)
    assert error(torch.stack(list(found)), truth) < LOSS
