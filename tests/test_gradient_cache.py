"""Gradients of micro-batches against encoding them with their graphs and the reference's loss."""

import contextlib
import itertools
import weakref
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from amdim_fast import gradient_cache, replay
from amdim_fast.encoder import EncoderOutput
from amdim_fast.gradient_cache import CachedEncoding
from amdim_fast.model import AMDIM
from amdim_fast.recipes import RECIPES, Recipe
from amdim_fast.reference.mixture import multiscale_mixture
from amdim_fast.reference.nce import multiscale_nce
from amdim_fast.training import Training, build_model

# (images, micro_batch): the sizes of the micro-batches
SPLITS = {(6, 2): (2, 2, 2), (5, 3): (2, 3), (7, 3): (2, 2, 3), (4, 4): (4,), (4, 5): (4,)}
CLIP = 7.0


def make_model(dtype=torch.float64, frozen=False, use_bn=True, **options):
    """Small, with nothing at zero; running statistics unlike those at the start."""
    torch.manual_seed(1)
    model = AMDIM(32, 3, 12, 2, use_bn, tclip=CLIP, **options)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.train(not frozen)
    return model.to(dtype)


def make_views(images, dtype=torch.float64):
    generator = torch.Generator().manual_seed(images)
    views = torch.randn(2, images, 3, 32, 32, dtype=torch.float64, generator=generator)
    locations = torch.randint(0, 25, (2, images), generator=generator)
    return views.to(dtype), tuple(locations)


def objective(model, maps, locations):
    """The reference's, of the features of both views."""
    if model.mixture is None:
        return sum(multiscale_nce(*maps, locations, clip=CLIP, reg_weight=0.05))
    sources = [(model.mixture(m.r1), m.r5, m.r7) for m in maps]
    options = {"tau": model.g2l_loss.tau, "alpha": model.g2l_loss.alpha, "clip": CLIP}
    return sum(multiscale_mixture(*sources, locations, **options)[:4])


def plain(model, views, locations, sizes):
    """Each micro-batch encoded with its graph, then one loss of all features."""
    maps = []
    for view in views:
        parts = [model.encoder(part) for part in view.split(sizes)]
        maps.append(EncoderOutput(*map(torch.cat, zip(*parts, strict=True))))
    loss = objective(model, maps, locations)
    loss.backward()
    return loss.detach()


def cached(model, views, locations, micro_batch, encoder=None):
    encoding = CachedEncoding(encoder or model.encoder, views, micro_batch)
    loss = model.objective(*encoding.features, locations=locations).loss
    loss.backward()
    encoding.backward()
    return loss.detach()


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in found.values()), found.keys()
    return found


def distance(found, expected):
    """Largest difference of a tensor, relative to its largest value.

    A bias before BatchNorm has gradient 0 but for rounding: 1e-4 of the largest is the least scale.
    """
    assert found.keys() == expected.keys()
    largest = {name: float(truth.abs().max()) for name, truth in expected.items()}
    least = 1e-4 * max(largest.values())
    return max(
        float((found[name].double() - truth.double()).abs().max()) / max(largest[name], least)
        for name, truth in expected.items()
    )


def whole_distance(found, expected):
    """Of all gradients as one vector, relative to its norm."""
    found, expected = (
        torch.cat([grad.double().flatten() for grad in grads.values()])
        for grads in (found, expected)
    )
    return float((found - expected).norm() / expected.norm())


def both(images, micro_batch, sizes, **options):
    """(model, loss) of the cache and of the plain definition, from the same start."""
    models = make_model(**options), make_model(**options)
    views, locations = make_views(images, next(models[0].parameters()).dtype)
    torch.manual_seed(3)
    ours = cached(models[0], views, locations, micro_batch)
    torch.manual_seed(3)
    truth = plain(models[1], views, locations, sizes)
    return (models[0], ours), (models[1], truth)


@pytest.mark.parametrize("split", [*SPLITS, (4, 1)])
def test_frozen_statistics_give_the_gradients_of_the_full_batch(split):
    (model, loss), (full, truth) = both(*split, split[:1], frozen=True)
    assert abs(loss - truth) <= 1e-12 * truth
    assert distance(gradients(model), gradients(full)) <= 1e-11
    (single, loss), (rounded, _) = both(*split, split[:1], frozen=True, dtype=torch.float32)
    assert abs(loss - truth) <= 1e-6 * truth
    assert whole_distance(gradients(single), gradients(full)) <= 1e-5
    noise = distance(gradients(rounded), gradients(full))
    assert distance(gradients(single), gradients(full)) <= 2 * noise + 1e-5


@pytest.mark.parametrize("components", [None, 2])
@pytest.mark.parametrize("split", SPLITS)
def test_batchnorm_is_per_micro_batch(split, components):
    (model, loss), (expected, truth) = both(*split, SPLITS[split], components=components)
    assert abs(loss - truth) <= 1e-12 * truth
    assert distance(gradients(model), gradients(expected)) <= 1e-11


def test_wrong_definitions_are_noticed():
    """Statistics of the whole batch; negatives of the micro-batch only."""
    (model, _), (whole, _) = both(6, 2, (6,))
    assert distance(gradients(model), gradients(whole)) > 1e-2
    (model, _), (own, _) = both(6, 2, (2, 2, 2), frozen=True)
    own.zero_grad()
    views, locations = make_views(6)
    for part in torch.arange(6).split(2):
        plain(own, views[:, part], tuple(picked[part] for picked in locations), (2,))
    assert distance(gradients(model), gradients(own)) > 1e-2


def statistics(model):
    found = {name: buffer for name, buffer in model.encoder.named_buffers() if "mean" in name}
    counts = {int(m.num_batches_tracked) for m in model.encoder.modules() if hasattr(m, "momentum")}
    return found, counts


def test_running_statistics_move_once_a_micro_batch():
    (model, _), (expected, _) = both(6, 2, (2, 2, 2))
    (found, counts), (truth, truth_counts) = statistics(model), statistics(expected)
    assert counts == truth_counts == {6}
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_a_second_update_of_statistics_is_noticed(monkeypatch):
    monkeypatch.setattr(gradient_cache, "BuffersKept", lambda _: contextlib.nullcontext())
    (model, _), (expected, _) = both(6, 2, (2, 2, 2))
    assert statistics(model)[1] == {12}
    assert distance(statistics(model)[0], statistics(expected)[0]) > 1e-2


def with_dropout(monkeypatch):
    make = make_model

    def made(**options):
        model = make(**options)
        layers = model.encoder.layer_list
        layers[0] = nn.Sequential(layers[0], nn.Dropout(0.3))
        layers[2].layer_list.append(nn.Dropout(0.3))
        return model

    monkeypatch.setitem(globals(), "make_model", made)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_dropout_draws_the_same_again(monkeypatch, checkpoint_blocks):
    with_dropout(monkeypatch)
    views, locations = make_views(5)
    ours, expected = make_model(), make_model()
    ours.encoder.checkpoint_blocks = checkpoint_blocks
    torch.manual_seed(3)
    cached(ours, views, locations, 3)
    following = torch.rand(4)
    torch.manual_seed(3)
    plain(expected, views, locations, (2, 3))
    assert distance(gradients(ours), gradients(expected)) <= 1e-11
    assert torch.equal(following, torch.rand(4))


def test_other_draws_are_noticed(monkeypatch):
    with_dropout(monkeypatch)
    monkeypatch.setattr(replay.RandomState, "replayed", lambda _: contextlib.nullcontext())
    (model, _), (expected, _) = both(5, 3, (2, 3))
    assert distance(gradients(model), gradients(expected)) > 1e-2


class Recorded(nn.Module):
    """Stands for DistributedDataParallel: tells forwards with a graph, backwards and no_sync."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.events, self.quiet = encoder, [], False

    @contextlib.contextmanager
    def no_sync(self):
        self.quiet = True
        yield
        self.quiet = False

    def forward(self, x):
        found = self.encoder(x)
        if torch.is_grad_enabled():
            self.events.append(("forward", self.quiet))
            found.r1.register_hook(lambda _: self.events.append(("backward", self.quiet)))
        return found


def test_one_backward_of_a_step_synchronises():
    model = make_model()
    wrapper = Recorded(model.encoder)
    cached(model, *make_views(6), 2, wrapper)
    quiet = [*itertools.repeat(True, 5), False]
    assert wrapper.events == [(kind, q) for q in quiet for kind in ("forward", "backward")]


def test_distributed_data_parallel_reduces_once():
    calls = []

    def hook(_, bucket):
        calls.append(bucket.gradients())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, views = make_model(), make_views(6)
        wrapped = DistributedDataParallel(model.encoder)
        wrapped.register_comm_hook(None, hook)
        for _ in range(2):
            model.zero_grad()
            calls.clear()
            cached(model, *views, 2, wrapped)
        reduced = sum(len(tensors) for tensors in calls)
        assert reduced == sum(p.requires_grad for p in model.encoder.parameters())
    finally:
        dist.destroy_process_group()
    expected = make_model()
    plain(expected, *views, (2, 2, 2))
    assert distance(gradients(model), gradients(expected)) <= 1e-11


def test_autocast_reaches_every_weight_in_both_passes():
    ours, expected = (make_model(torch.float32) for _ in range(2))
    views, locations = make_views(6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        encoding = CachedEncoding(ours.encoder, views, 2)
        assert encoding.features[0].r5.dtype == torch.bfloat16
        loss = ours.objective(*encoding.features, locations=locations).loss
    loss.backward()
    encoding.backward()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        maps = []
        for view in views:
            parts = [expected.encoder(part) for part in view.split(2)]
            maps += [*map(torch.cat, zip(*parts, strict=True))]
        loss = expected.g2l_loss(*maps, locations=locations)
    sum(loss).backward()
    assert distance(gradients(ours), gradients(expected)) <= 1e-6


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_compiled(checkpoint_blocks):
    torch._dynamo.reset()
    ours, expected = make_model(), make_model()
    ours.encoder.checkpoint_blocks = checkpoint_blocks
    ours.encoder.compile(backend="aot_eager", fullgraph=True)
    views, locations = make_views(4)
    cached(ours, views, locations, 2)
    plain(expected, views, locations, (2, 2))
    assert distance(gradients(ours), gradients(expected)) <= 1e-11
    (found, counts), (truth, _) = statistics(ours), statistics(expected)
    assert counts == {4}
    assert distance(found, truth) <= 1e-12


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_blocks_change_nothing_but_are_run_twice(frozen):
    views, locations = make_views(4)
    models, runs = [], []
    for checkpoint_blocks in (False, True):
        model = make_model(frozen=frozen)
        model.encoder.checkpoint_blocks = checkpoint_blocks
        calls = []
        model.encoder.layer_list[2].register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        loss = model(*views, locations=locations).loss
        loss.backward(retain_graph=True)
        runs.append(len(calls))
        loss.backward()
        models.append(model)
    assert runs == [2, 4]
    truth, found = map(gradients, models)
    assert all(torch.equal(found[name], truth[name]) for name in truth)
    buffers = [dict(model.named_buffers()) for model in models]
    assert all(torch.equal(buffers[1][name], buffers[0][name]) for name in buffers[0])
    assert statistics(models[1])[1] == ({0} if frozen else {2})


def test_an_update_by_recomputation_is_noticed(monkeypatch):
    monkeypatch.setattr("amdim_fast.encoder.BuffersKept", lambda _: contextlib.nullcontext())
    model = make_model()
    model.encoder.checkpoint_blocks = True
    plain(model, *make_views(4), (4,))
    assert statistics(model)[1] == {2, 4}


SMALL = replace(
    RECIPES["digits"], ndf=3, n_rkhs=12, depth=1, batch_size=6, steps=3, warmup_steps=2, use_bn=True
)


def trained(recipe):
    """Values of three steps, and the model after them, in float64."""
    torch.manual_seed(2)
    training = Training(build_model(recipe, 4).double(), recipe, 12, seed=0)
    values = []
    for step in range(3):
        views, _ = make_views(6 + step)
        labels = torch.arange(6) % 5 - 1
        values.append(training.update(views[:, :6].contiguous(), labels))
    return torch.stack(values), training


@pytest.mark.parametrize("mixture", [0, 2])
@pytest.mark.parametrize(
    "change",
    [
        {"micro_batch": 6},
        {"micro_batch": 9, "checkpoint_blocks": True},
        {"micro_batch": 4, "freeze_bn": True},
        {"micro_batch": 1, "freeze_bn": True, "checkpoint_blocks": True},
    ],
)
def test_training_steps_have_the_values_of_the_full_batch(change, mixture):
    recipe = replace(SMALL, mixture=mixture)
    whole = replace(recipe, freeze_bn=change.get("freeze_bn", False))
    values, training = trained(replace(recipe, **change))
    truth, expected = trained(whole)
    assert len(training.names) == values.shape[1]
    torch.testing.assert_close(values, truth, rtol=1e-6, atol=1e-7)
    found, true = training.model.state_dict(), expected.model.state_dict()
    for name in true:
        torch.testing.assert_close(found[name], true[name], rtol=1e-6, atol=1e-9, msg=name)


def test_features_are_gone_in_the_second_pass(monkeypatch):
    seen = []
    encode, backward = CachedEncoding._encode, CachedEncoding.backward

    def recorded(self):
        seen.extend(weakref.ref(part) for features in self.features for part in features[1:])
        backward(self)

    def checked(self, images):
        if torch.is_grad_enabled():
            alive.append(sum(part() is not None for part in seen))
        return encode(self, images)

    alive = []
    monkeypatch.setattr(CachedEncoding, "backward", recorded)
    monkeypatch.setattr(CachedEncoding, "_encode", checked)
    trained(replace(SMALL, micro_batch=3))
    assert len(seen) == 12
    assert alive == [0] * 12


def test_frozen_statistics_stay_and_weights_learn():
    _, training = trained(replace(SMALL, freeze_bn=True))
    encoder = training.model.encoder
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            assert not module.running_mean.any()
            assert bool((module.running_var == 1).all())
    assert encoder.rkhs_block_5.bn_out.bn.bias.any()
    assert training.model.evaluator.block_glb_mlp.block_forward[3].running_mean.any()


@pytest.mark.parametrize(
    ("images", "micro_batch", "sentence"),
    [
        (6, -1, "micro_batch is -1; it must be a whole number, 0 or more"),
        (6, 1, "micro_batch is 1; of a batch of 6 .* take 2 or more, or freeze_bn"),
        (5, 2, "micro_batch is 2; of a batch of 5 .* a single image.* take 3 or more"),
        (3, 1, "take 3 or more"),
    ],
)
def test_recipe_refuses(images, micro_batch, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(name="x", batch_size=images, micro_batch=micro_batch)
    if micro_batch > 0:
        Recipe(name="x", batch_size=images, micro_batch=micro_batch, freeze_bn=True)


def test_misuse_is_said():
    model, (views, locations) = make_model(), make_views(4)
    with pytest.raises(ValueError, match="micro_batch is 0; it must be 1 or more"):
        CachedEncoding(model.encoder, views, 0)
    with pytest.raises(ValueError, match="x has 1 images; it should have 2 or more in training"):
        CachedEncoding(model.encoder, views, 1)
    encoding = CachedEncoding(model.encoder, views, 2)
    with pytest.raises(RuntimeError, match="the features have no gradients"):
        encoding.backward()
    model.objective(*encoding.features, locations=locations).loss.backward()
    encoding.backward()
    with pytest.raises(RuntimeError, match="the features have no gradients"):
        encoding.backward()
