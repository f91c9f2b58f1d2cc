"""Every recipe builds, and has the schedule and sizes that are published."""

from dataclasses import asdict, replace

import pytest
import torch

from amdim_fast import pretrain
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import DATA_SETS
from amdim_fast.training.recipes import MODEL_SIZES, RECIPES, Recipe, options
from amdim_fast.training.step import build_model
from amdim_fast.views.params import POLICIES

# images, batch, epochs, milestones, probe epochs and milestones, ndf/n_rkhs/depth
PUBLISHED = {
    "cifar10": (50_000, 200, 300, (250, 280), 120, (80, 110), (256, 2048, 10)),
    "cifar100": (50_000, 200, 300, (250, 280), 120, (80, 110), (256, 2048, 10)),
    "stl10": (105_000, 200, 300, (250, 280), 120, (80, 110), (192, 1536, 8)),
    "imagenet128": (1_281_167, 480, 50, (30, 45), 30, (15, 25), (192, 1536, 8)),
    "places205": (2_448_873, 480, 50, (30, 45), 15, (7, 12), (192, 1536, 8)),
    "folder": (1_000, 200, 50, (30, 45), 30, (15, 25), (192, 1536, 8)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_schedule_is_the_published_one(name):
    images, batch, epochs, milestones, probe_epochs, probe_milestones, sizes = PUBLISHED[name]
    recipe = RECIPES[name]
    assert (recipe.batch_size, recipe.epochs, recipe.milestones) == (batch, epochs, milestones)
    assert (recipe.probe_epochs, recipe.probe_milestones) == (probe_epochs, probe_milestones)
    assert (recipe.ndf, recipe.n_rkhs, recipe.depth) == sizes
    adam = (recipe.learning_rate, recipe.beta1, recipe.beta2, recipe.weight_decay, recipe.epsilon)
    assert adam == (2e-4, 0.8, 0.999, 1e-5, 1e-8)
    assert (recipe.tclip, recipe.reg_weight, recipe.warmup_steps) == (20.0, 5e-2, 500)
    epoch = images // batch
    assert recipe.total_steps(images) == epochs * epoch
    first, second = (milestone * epoch for milestone in milestones)
    steps = [500, first - 1, first, second - 1, second, recipe.total_steps(images) - 1]
    factors = [recipe.rate_factor(step, epoch) for step in steps if step >= 499]
    assert factors[-5:] == pytest.approx([1.0, 0.2, 0.2, 0.04, 0.04][-len(factors) :])
    assert recipe.rate_factor(0, epoch) == pytest.approx(1 / 500)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.data in DATA_SETS
    with torch.device("meta"):
        model = build_model(recipe, 10)
        maps = model.encoder(torch.empty(2, 3, *2 * [POLICIES[recipe.policy].size]))
    width = recipe.n_rkhs
    assert [list(m.shape) for m in maps] == [[2, width, s, s] for s in (1, 5, 7)]
    assert Recipe.from_dict(asdict(recipe)) == recipe


def test_recipes_survive_json_and_name_what_is_wrong():
    values = asdict(RECIPES["cifar10"]) | {"milestones": [250, 280], "probe_milestones": [80, 110]}
    assert Recipe.from_dict(values) == RECIPES["cifar10"]
    older = {name: value for name, value in values.items() if name != "cuda_graph"}
    assert Recipe.from_dict(older) == replace(RECIPES["cifar10"], cuda_graph=False)
    assert Recipe.from_dict(values | {"cuda_graph": True}).cuda_graph is True
    del values["steps"]
    with pytest.raises(ValueError, match="has missing or unknown fields: steps, unknown"):
        Recipe.from_dict(values | {"unknown": 1})


def test_differences_leave_bookkeeping_out():
    recipe = RECIPES["digits"]
    assert recipe.differences(replace(recipe, log_every=3, keep_every=7, cuda_graph=False)) == {}
    assert recipe.differences(replace(recipe, depth=5)) == {"depth": (2, 5)}


def test_steps_go_before_epochs():
    recipe = replace(RECIPES["cifar10"], steps=77)
    assert recipe.total_steps(50_000) == 77


def test_help_names_every_field_with_its_values(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in options():
        assert f"--{name.replace('_', '-')}" in text
    assert "images per step (B) [200; digits 128; imagenet128, places205 480]" in text
    assert "[250 280; digits none; imagenet128, places205, folder 30 45]" in text
    assert "small 192/1536/8, medium 256/2048/10, large 320/2560/10" in text
    assert "--cuda-graph, --no-cuda-graph replay steps as one CUDA graph; auto" in text
    assert "compile or deterministic [auto]" in text
    assert MODEL_SIZES["large"] == (320, 2560, 10)


@pytest.mark.parametrize("recipe", ["none", 3])
def test_pretrain_takes_a_recipe_or_the_name_of_one(recipe):
    with pytest.raises(ValueError, match=f"recipe is {recipe!r}; it must be one of digits"):
        pretrain(recipe, progress=False)
