"""Gradients of micro-batches against encoding them with their graphs and the reference's loss."""

import contextlib
import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from amdim_fast.model import gradient_cache, replay
from amdim_fast.model.gradient_cache import CachedEncoding
from tests.model.gradient_cases import (
    SPLITS,
    both,
    cached,
    distance,
    gradients,
    make_model,
    make_views,
    plain,
    statistics,
    whole_distance,
)


@pytest.mark.parametrize("split", [*SPLITS, (4, 1)])
def test_frozen_statistics_give_the_gradients_of_the_full_batch(split):
    """In float32 as near to float64 as the reference's, on the mean over some views."""
    ours, noise = [], []
    for seed in range(4):
        options = {"frozen": True, "seed": seed}
        (model, loss), (full, truth) = both(*split, split[:1], **options)
        assert abs(loss - truth) <= 1e-12 * truth
        assert distance(gradients(model), gradients(full)) <= 1e-11
        (single, loss), (rounded, _) = both(*split, split[:1], dtype=torch.float32, **options)
        assert abs(loss - truth) <= 1e-6 * truth
        assert whole_distance(gradients(single), gradients(full)) <= 1e-5
        ours.append(distance(gradients(single), gradients(full)))
        noise.append(distance(gradients(rounded), gradients(full)))
    assert sum(ours) <= 2 * sum(noise) + 4e-5


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


def make_with_dropout(**options):
    model = make_model(**options)
    layers = model.encoder.layer_list
    layers[0] = nn.Sequential(layers[0], nn.Dropout(0.3))
    layers[2].layer_list.append(nn.Dropout(0.3))
    return model


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_dropout_draws_the_same_again(checkpoint_blocks):
    views, locations = make_views(5)
    ours, expected = make_with_dropout(), make_with_dropout()
    ours.encoder.checkpoint_blocks = checkpoint_blocks
    torch.manual_seed(3)
    cached(ours, views, locations, 3)
    following = torch.rand(4)
    torch.manual_seed(3)
    plain(expected, views, locations, (2, 3))
    assert distance(gradients(ours), gradients(expected)) <= 1e-11
    assert torch.equal(following, torch.rand(4))


def test_other_draws_are_noticed(monkeypatch):
    monkeypatch.setattr(replay.RandomState, "replayed", lambda _: contextlib.nullcontext())
    (model, _), (expected, _) = both(5, 3, (2, 3), make=make_with_dropout)
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


def test_misuse_is_said():
    model, (views, locations) = make_model(), make_views(4)
    with pytest.raises(ValueError, match="micro_batch is 0; it must be 1 or more"):
        CachedEncoding(model.encoder, views, 0)
    with pytest.raises(ValueError, match="x has 1 images; it must have 2 or more in training"):
        CachedEncoding(model.encoder, views, 1)
    encoding = CachedEncoding(model.encoder, views, 2)
    with pytest.raises(RuntimeError, match="the features have no gradients"):
        encoding.backward()
    model.objective(*encoding.features, locations=locations).loss.backward()
    encoding.backward()
    with pytest.raises(RuntimeError, match="the features have no gradients"):
        encoding.backward()
