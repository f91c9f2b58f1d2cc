"""Models of 32 px take images of every size: trained, evaluated and encoded."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from amdim_fast import AMDIM, Preprocessing
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import load_data
from amdim_fast.evaluation.features import extract_pixels
from amdim_fast.views.params import POLICIES
from tests.data.image_files import write_folder

SIZES = ((40, 48), (32, 32), (20, 31), (90, 33))


def seen(picture):
    """By torchvision: the shorter side at 32 px, then the center."""
    resize = transforms.Resize(32, transforms.InterpolationMode.BICUBIC)
    return transforms.CenterCrop(32)(resize(Image.fromarray(picture)))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_folder(tmp_path / "images", train=12, test=4, sizes=SIZES)


def test_a_run_its_baselines_and_its_evaluation(pictures, tmp_path):
    data = ["--data=folder", "--data-dir=images"]
    small = ["--ndf=4", "--n-rkhs=16", "--depth=1", "--batch-size=8", "--steps=2", "--workers=0"]
    run = ["--policy=cifar", "--precision=float32", "--name=run"]
    assert main(["pretrain", *data, *small, *run]) == 0
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    for what in ("raw_pixels", "random_weights", "pretrained"):
        assert 0 <= summary[f"accuracy_{what}"] <= 1
    checkpoint = "runs/run/checkpoint.pt"
    options = ["--workers=0", "--knn-k=3", "--methods", "knn", "stored"]
    assert main(["evaluate", checkpoint, *data, *options]) == 0

    model = AMDIM.from_pretrained(checkpoint)
    policy = POLICIES["cifar"]
    normalize = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(policy.mean, policy.std)]
    )
    x = torch.stack([normalize(seen(picture)) for picture in pictures.values()])
    with torch.no_grad():
        expected = model.eval().encoder(x).r1.flatten(1)
    assert torch.equal(model.encode(list(map(Image.fromarray, pictures.values()))), expected)


def test_raw_pixels_are_those_of_the_transform(pictures):
    data = load_data("folder", "images")
    found = extract_pixels(data.train, Preprocessing.of(POLICIES["cifar"]))
    names = [name for name in pictures if name.startswith("train")]
    expected = np.stack([np.asarray(seen(pictures[name])).reshape(-1) for name in names])
    assert torch.equal(found, torch.from_numpy(expected).float())
    digits = load_data("digits").test
    found = extract_pixels(digits, Preprocessing.of(POLICIES["digits"]))
    assert torch.equal(found, digits.images.flatten(1).float())
