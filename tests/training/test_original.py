"""Twenty steps from the original's weights, beside a plain-PyTorch loop on the reference loss."""

import copy

import pytest
import torch
import torch.nn.functional as F

from amdim_fast import load_checkpoint
from amdim_fast.nce.reference import multiscale_nce
from amdim_fast.training.recipes import Recipe
from amdim_fast.training.step import LOSS_TERMS, Training
from amdim_fast.views.augment import augment
from amdim_fast.views.params import POLICIES
from amdim_fast.views.sampling import sample_view_params
from tests.conftest import GOLDEN

STEPS, BATCH, IMAGES = 20, 12, 48
SIZE = {32: "cifar", 64: "stl10", 128: "imagenet128"}


def recipe_of(model, size):
    hyperparams = model.hyperparams
    return Recipe(
        name="original",
        policy=SIZE[size],
        precision="float32",
        batch_size=BATCH,
        steps=STEPS,
        warmup_steps=8,
        milestones=(3,),
        **{name: hyperparams[name] for name in ("ndf", "n_rkhs", "tclip", "reg_weight")},
        depth=hyperparams["n_depth"],
    )


def replayed(size):
    """Views, 5x5 locations and labels of every step, drawn beforehand."""
    generator = torch.Generator().manual_seed(5)
    policy = POLICIES[SIZE[size]]
    source = 32 if size == 32 else size + 8
    for _ in range(STEPS):
        images = torch.randint(0, 256, (BATCH, source, source, 3), dtype=torch.uint8)
        sizes = torch.tensor([[source, source]]).expand(BATCH, 2)
        params = sample_view_params(policy, sizes, generator=generator)
        views = augment(images, params, size=policy.size, mean=policy.mean, std=policy.std)
        locations = torch.randint(0, 25, (2, BATCH), generator=generator)
        labels = torch.randint(0, 10, (BATCH,), generator=generator)
        yield views, tuple(locations), labels


def probe_cost(logits, labels):
    return F.cross_entropy(10 * torch.tanh(logits / 10), labels) + 1e-3 * logits.pow(2).mean()


def plain_loop(model, recipe, steps, dtype, weight_decay=1e-5, milestone=True):
    """What the public code's loop does; returns the four terms of each step."""
    model = copy.deepcopy(model).to(dtype).train()
    model.evaluator.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        parameters, lr=2e-4, betas=(0.8, 0.999), eps=1e-8, weight_decay=weight_decay, foreach=False
    )
    history = []
    for step, (views, locations, labels) in enumerate(steps):
        first, second = (model.encoder(view.to(dtype)) for view in views)
        terms = multiscale_nce(
            first, second, locations, clip=recipe.tclip, reg_weight=recipe.reg_weight
        )
        loss = sum(terms)
        logits = model.evaluator(torch.cat([first.r1, second.r1]))
        loss = loss + sum(probe_cost(part, torch.cat([labels, labels])) for part in logits)
        optimizer.zero_grad()
        loss.backward()
        rate = 2e-4 * min(1, (step + 1) / 8)
        if milestone and step >= 12:  # epoch 3 of four steps
            rate *= 0.2
        for options in optimizer.param_groups:
            options["lr"] = rate
        optimizer.step()
        history.append([term.item() for term in terms])
    return torch.tensor(history, dtype=torch.float64), model


def ours(model, recipe, steps):
    training = Training(copy.deepcopy(model), recipe, IMAGES, seed=0)
    training.model.evaluator.eval()  # without dropout, whose draws nobody can replay in float64
    values = [training.update(views, labels, locations) for views, locations, labels in steps]
    return torch.stack(values)[:, : len(LOSS_TERMS)].double(), training.model


def distance(found, expected):
    """Of all weights, relative to their norm."""
    found, expected = (
        torch.cat([p.detach().double().flatten() for p in model.parameters()])
        for model in (found, expected)
    )
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module", params=[32, 64])
def case(request):
    model = load_checkpoint(GOLDEN / f"amdim_public_{request.param}.pth")
    recipe = recipe_of(model, request.param)
    steps = list(replayed(request.param))
    return model, recipe, steps, plain_loop(model, recipe, steps, torch.float64)


def test_follows_a_plain_loop(case):
    model, recipe, steps, (truth, true_model) = case
    history, trained = ours(model, recipe, steps)
    plain, plain_model = plain_loop(model, recipe, steps, torch.float32)
    noise, weight_noise = (plain - truth).abs().max(), distance(plain_model, true_model)
    assert (history - truth).abs().max() <= 4 * noise + 1e-6
    assert distance(trained, true_model) <= 4 * weight_noise + 1e-6


@pytest.mark.parametrize("error", [{"weight_decay": 0.0}, {"milestone": False}])
def test_a_wrong_loop_is_noticed(case, error):
    model, recipe, steps, (_, true_model) = case
    _, wrong_model = plain_loop(model, recipe, steps, torch.float64, **error)
    _, plain_model = plain_loop(model, recipe, steps, torch.float32)
    assert distance(wrong_model, true_model) > 5 * distance(plain_model, true_model)
