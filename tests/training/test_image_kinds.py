"""Runs on images of other channels and sizes than color at 32 to 128 px."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from amdim_fast import EvaluationOptions, evaluate, export_encoder, load_pretrained, pretrain
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.cli.info import describe_model
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import load_data
from amdim_fast.evaluation.embed import embed
from tests.data.test_channels import noise
from tests.training.tiny import TINY

BACKBONE = "timm/resnet10t"
QUIET = {"device": "cpu", "progress": False}


pytestmark = pytest.mark.usefixtures("few_digits_loaded")


def test_gray_digits_from_the_run_to_the_features(tmp_path):
    recipe = replace(TINY, channels=1, steps=2, checkpoint_every=1)
    summary = pretrain(recipe, name="run", runs_dir=tmp_path, **QUIET)
    assert {"accuracy_raw_pixels", "accuracy_pretrained"} <= summary.keys()
    path = tmp_path / "run" / "checkpoint.pt"
    contents = read_checkpoint(path)
    assert contents["model"]["encoder.layer_list.0.conv.weight"].shape == (4, 1, 3, 3)
    assert contents["hyperparams"]["in_channels"] == 1
    assert pretrain(replace(recipe, steps=3), resume=tmp_path / "run", **QUIET)["step"] == 3

    result = evaluate(
        path, options=EvaluationOptions(("knn",), k=3), out_dir=tmp_path / "eval", **QUIET
    )
    assert result["preprocessing"]["mean"] == (0.5,)
    assert (tmp_path / "eval" / "neighbours.png").is_file()
    model = load_pretrained(path)
    gray = load_data("digits", channels=1).test
    features = model.encode(gray.images)
    embed(path, "digits", tmp_path / "out.npz", **QUIET)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "out.npz")["features"][-100:]), features)
    picture = Image.fromarray(gray.images[0, ..., 0].numpy()).convert("RGB")
    assert torch.allclose(model.encode(picture), features[0], atol=1e-6)

    export_encoder(path, tmp_path / "export")
    assert torch.equal(load_pretrained(tmp_path / "export").encode(gray.images), features)
    assert describe_model(tmp_path / "export")["input"].startswith("1 x 32 x 32 px")


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    root = tmp_path_factory.mktemp("bands")
    for index in range(8):
        for split in ("train", "test"):
            folder = root / split / f"class{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{index}.npy", noise(170, 165, 5, seed=index))
    return root


def test_five_bands_at_160_px_over_a_network(bands, tmp_path):
    run = tmp_path / "run"
    flags = [
        *("--recipe=folder", f"--data-dir={bands}", f"--runs-dir={tmp_path}", "--name=run"),
        *("--channels=5", "--size=160", f"--backbone={BACKBONE}", "--n-rkhs=16", "--batch-size=4"),
        *("--steps=1", "--device=cpu", "--workers=0", "--no-progress"),
    ]
    assert main(["pretrain", *flags]) == 0
    assert main(["pretrain", f"--resume={run}", "--steps=2", "--workers=0", "--no-progress"]) == 0
    assert json.loads((run / "config.json").read_text())["recipe"]["size"] == 160
    model = load_pretrained(run / "checkpoint.pt")
    facts = model.preprocessing
    assert (facts.size, facts.resize, len(facts.mean)) == (160, 182, 5)
    assert (model.encoder.size, model.encoder.in_channels) == (160, 5)
    options = EvaluationOptions(("knn",), k=1, workers=0)
    result = evaluate(run / "checkpoint.pt", "folder", data_dir=bands, options=options, **QUIET)
    assert result["accuracy"]["knn"]["top1"] == 1  # the test images are the training images
    named = load_pretrained(run / "checkpoint.pt", policy="stl10").preprocessing
    assert (named.size, named.resize, named.mean) == (160, 175, ((0.43 + 0.42 + 0.39) / 3,) * 5)


def test_a_policy_at_another_size_is_that_of_the_file(tmp_path):
    """64 px has a policy of its own; the run's is another."""
    recipe = replace(TINY, policy="cifar", size=64, steps=1, baselines=False)
    pretrain(recipe, name="run", runs_dir=tmp_path, **QUIET)
    path = tmp_path / "run" / "checkpoint.pt"
    for policy in (None, "cifar"):
        found = load_pretrained(path, policy=policy).preprocessing
        assert (found.size, found.resize) == (64, None)
        assert found.mean == (125.3 / 255, 123.0 / 255, 113.9 / 255)
    with pytest.raises(ValueError, match="'imagenet128' makes views of 128 px and the"):
        load_pretrained(path, policy="imagenet128")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--size=160"],
            "size is 160; the paper's encoder takes 32, 64, 128: give one of them",
        ),
        (["--channels=0"], "channels is 0; it must be a whole number, 1 or more"),
        (
            ["--channels=4"],
            "channels is 4, by --channels or the model; images of digits can have 3 or",
        ),
        (["--size=9000", "--backbone=resnet18"], "size is 9000; it must be"),
        (["--channels=1", "--backbone=resnet18"], "torchvision's networks take 3 channels"),
    ],
)
def test_the_command_says_what_cannot_be(flags, said, tmp_path, capsys):
    assert main(["pretrain", "--runs-dir", str(tmp_path), "--no-progress", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_model_and_images_of_other_channels(tmp_path):
    pretrain(
        replace(TINY, channels=1, steps=1, baselines=False), name="run", runs_dir=tmp_path, **QUIET
    )
    path = tmp_path / "run" / "checkpoint.pt"
    color = load_data("digits")
    with pytest.raises(ValueError, match="takes images of C = 1 channels; those of the"):
        evaluate(path, color, **QUIET)
    with pytest.raises(ValueError, match=r"must be \[N, H, W, 1\], \[N, 1, H, W\]"):
        load_pretrained(path).encode(color.test.images[:2])
    with pytest.raises(ValueError, match=r"must be \[N, H, W, 1\]"):
        embed(path, color, tmp_path / "out.npz", **QUIET)
    assert not (tmp_path / "out.npz").exists()


def test_files_of_other_channels_are_told_before_the_run_begins(bands, tmp_path, capsys):
    flags = [
        *("--recipe=folder", f"--data-dir={bands}", f"--runs-dir={tmp_path}", "--policy=stl10"),
        *("--channels=4", "--batch-size=2", "--device=cpu", "--no-progress"),
    ]
    assert main(["pretrain", *flags]) == 2
    said = capsys.readouterr().err
    assert "0.npy is uint8 [170, 165, 5]; it must be uint8 [H, W, 4], or change --channels" in said
    assert not list(tmp_path.iterdir())
