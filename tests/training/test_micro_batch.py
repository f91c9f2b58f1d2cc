"""Micro-batches and frozen statistics in training, and what a recipe refuses."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from amdim_fast.model.gradient_cache import CachedEncoding
from amdim_fast.training.recipes import Recipe
from amdim_fast.training.step import Training, build_model
from tests.model.gradient_cases import make_views
from tests.training.tiny import TINY

SMALL = replace(TINY, batch_size=6, steps=3, use_bn=True)


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
        (6, 1, "micro_batch is 1; it must be 2 or more for a batch of 6, .* or set freeze_bn"),
        (5, 2, "micro_batch is 2; it must be 3 or more for a batch of 5, .* a single image"),
        (3, 1, "it must be 3 or more"),
    ],
)
def test_recipe_refuses(images, micro_batch, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(name="x", batch_size=images, micro_batch=micro_batch)
    if micro_batch > 0:
        Recipe(name="x", batch_size=images, micro_batch=micro_batch, freeze_bn=True)
