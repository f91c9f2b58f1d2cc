"""The bench of methods: one budget, the losses that it names, and a row for each seed."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from amdim_fast.data.datasets import load_digits
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.data.loader import training_batches
from amdim_fast.training.randomness import seed_everything
from amdim_fast.training.step import Training, build_model
from benchmarks import bench_methods
from benchmarks.bench_methods import AMDIM, METHODS, PIXELS, RANDOM, SIMCLR, SUPERVISED, TRAINED
from benchmarks.report.methods import methods
from benchmarks.report.rows import Rows
from tests.threads import torch_threads

SMALL = {"ndf": 4, "n_rkhs": 16, "depth": 1, "batch_size": 16, "steps": 2, "warmup_steps": 4}
RECIPE = replace(bench_methods.RECIPE, **SMALL)


@pytest.fixture(scope="module")
def whole():
    return bench_methods.composites(0)


@pytest.fixture(scope="module")
def data(whole):
    """Of each class a few."""
    train, test = (
        TensorImages(part.images[::step], part.labels[::step])
        for part, step in zip(whole.labeled(), (50, 20), strict=True)
    )
    return replace(whole, train=train, train_labeled=train, test=test)


@pytest.fixture(scope="module")
def encoders(data):
    return {m: bench_methods.train(m, 1, data, RECIPE)[0].state_dict() for m in METHODS[:-1]}


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_images_have_their_digits_labels(whole):
    digits = load_digits()
    for part, split, count in zip(whole.labeled(), digits.labeled(), (4000, 1000), strict=True):
        assert len(part) == count
        assert torch.equal(part.labels, split.labels)
        assert torch.equal(part.labels.bincount(), torch.full((10,), count // 10))


def test_random_weights_stay_and_the_methods_train_the_same_ones(encoders):
    seed_everything(1)
    first = build_model(RECIPE, None).encoder.state_dict()
    assert same(first, encoders[RANDOM])
    trained = [encoders[method] for method in TRAINED]
    assert not any(same(first, found) for found in trained)
    assert not any(same(trained[i], trained[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_amdim_is_the_packages_training(data, encoders):
    seed_everything(1)
    training = Training(build_model(RECIPE, None), RECIPE, len(data.train), 1)
    with training_batches(data.train, RECIPE.batch_size, seed=1) as loader:
        for _ in range(RECIPE.steps):
            batch = next(loader)
            training.update(training.views(batch), batch.labels)
    assert same(training.model.encoder.state_dict(), encoders[AMDIM])


def test_losses_are_their_definitions():
    first, second = (torch.randn(7, 5, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    costs = [
        logits.exp().sum().log() - logits[label]
        for view in (first, second)
        for logits, label in zip(view, labels, strict=True)
    ]
    found = bench_methods.loss_of(SUPERVISED, first, second, labels)
    torch.testing.assert_close(found, sum(costs) / 14, rtol=1e-6, atol=0)

    features = F.normalize(torch.cat([first, second]), dim=1)
    scores = (features @ features.T / 0.1).exp()
    costs = [
        (scores[i].sum() - scores[i, i]).log() - scores[i, (i + 7) % 14].log() for i in range(14)
    ]
    found = bench_methods.loss_of(SIMCLR, first, second, labels)
    torch.testing.assert_close(found, sum(costs) / 14, rtol=1e-6, atol=0)


def test_heads_are_a_projection_and_a_layer_of_classes():
    features = torch.randn(3, 16)
    head = bench_methods.make_head(SIMCLR, 16, 10)
    first, first_bias, second, second_bias = head.parameters()
    hidden = (features @ first.T + first_bias).clamp(min=0)
    torch.testing.assert_close(head(features), hidden @ second.T + second_bias)
    assert first.shape == (16, 16)
    assert second.shape == (128, 16)
    layer = bench_methods.make_head(SUPERVISED, 16, 10)
    weight, bias = layer.parameters()
    torch.testing.assert_close(layer(features), features @ weight.T + bias)
    assert weight.shape == (10, 16)


@pytest.mark.parametrize("method", [SIMCLR, SUPERVISED])
def test_a_step_is_adams_at_the_rate_of_the_recipe(method):
    """The first layer and the last move by the rate of the first step, as Adam moves them."""
    seed_everything(0)
    training = Training(build_model(RECIPE, None), replace(RECIPE, weight_decay=0.0), 80, 0)
    head = bench_methods.make_head(method, RECIPE.n_rkhs, 10)
    training.optimizer.add_param_group({"params": list(head.parameters())})
    weights = training.model.encoder.layer_list[0].conv.weight, list(head.parameters())[-1]
    before = [weight.detach().clone() for weight in weights]
    views, labels = torch.randn(2, 16, 3, 32, 32), torch.arange(16) % 10
    bench_methods.update(training, method, head, views, labels)
    assert training.step == 1
    for weight, old in zip(weights, before, strict=True):
        moved = (weight - old).abs().median().item()
        assert moved == pytest.approx(RECIPE.learning_rate / RECIPE.warmup_steps, rel=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_prints_accuracy_and_seconds(method, data, monkeypatch, capsys):
    monkeypatch.setattr(bench_methods, "composites", lambda seed: data)
    with torch_threads():
        bench_methods.run(method, 1, RECIPE)
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["accuracy"] <= 100
    assert found["seconds"] < 60
    assert (found["seconds"] > 0) == (method != PIXELS)


def test_rows_of_all_seeds_make_the_table(tmp_path, monkeypatch):
    """Every method with every seed in a process of its own, which is played here."""

    def played(seed, method):
        return {"accuracy": 50 + 10 * METHODS.index(method) + seed, "seconds": 60 + seed}

    monkeypatch.setattr(bench_methods, "run_apart", played)
    with torch_threads():
        assert bench_methods.main(["--out", str(tmp_path / "rows.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * (2 * len(TRAINED) + 2)
    assert all(row["shapes"]["steps"] == bench_methods.RECIPE.steps for row in rows)
    text = methods(Rows(rows))
    assert "|  | seed 0 | seed 1 | seed 2 | mean | training time, mean |" in text
    assert "| AMDIM | 50 % | 51 % | 52 % | 51 % | 61 s |" in text
    assert "| supervised | 70 % | 71 % | 72 % | 71 % | 61 s |" in text
    assert "| raw pixels | 90 % | 91 % | 92 % | 91 % |  |" in text
    without = [row for row in rows if row["provider"] != "AMDIM, seed 1"]
    assert "| AMDIM | 50 % | not yet measured | 52 % | not yet measured |" in methods(Rows(without))
    assert methods(Rows([])) == "Not yet measured."
