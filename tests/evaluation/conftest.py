"""A small model and few digits to evaluate it on."""

from dataclasses import asdict

import pytest
import torch

from amdim_fast import AMDIM, Preprocessing, save_checkpoint
from amdim_fast.data.datasets import LOADERS, ImageData, load_digits
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.training.recipes import RECIPES
from amdim_fast.views.params import POLICIES


@pytest.fixture(scope="module")
def digits():
    """Every tenth digit of training, every fourth of the test set."""
    data = load_digits()
    train = TensorImages(data.train.images[::10], data.train.labels[::10])
    test = TensorImages(data.test.images[::4], data.test.labels[::4])
    return ImageData(train, train, test, data.classes)


@pytest.fixture
def few_digits(digits, monkeypatch):
    """``--data digits`` is these few."""
    monkeypatch.setitem(LOADERS, "digits", lambda _root, _download: digits)


@pytest.fixture(scope="module")
def model(digits):
    """At random weights, BatchNorm's statistics those of the training digits."""
    torch.manual_seed(0)
    model = AMDIM(32, 6, 24, 1, n_classes=10)
    model.preprocessing = Preprocessing.of(POLICIES["digits"])
    with torch.no_grad():
        for _ in range(40):
            model.encoder(model.preprocessing(digits.train.images))
    return model


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, model, recipe=asdict(RECIPES["digits"]), step=7)
    return path
