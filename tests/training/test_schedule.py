"""The schedule that a run says first, and that what is asked for is what is done."""

import json
from dataclasses import replace

import pytest

from amdim_fast import pretrain
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import LOADERS
from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.schedule import describe_schedule
from tests.training.tiny import few_digits

SMALL = ["--ndf=4", "--n-rkhs=16", "--depth=1", "--batch-size=128", "--no-baselines"]
FOLDER = RECIPES["folder"]


@pytest.mark.parametrize(
    ("recipe", "images", "said"),
    [
        (
            RECIPES["digits"],
            4000,
            "600 steps, 19.35 epochs of 31, 128 images each; learning rate 0.0005 after 50 steps of"
            " warm-up",
        ),
        (
            FOLDER,
            1099,
            "250 steps, 50 epochs of 5, 200 images each; learning rate 0.0002 after 500 steps of"
            " warm-up, times 0.2 from step 150 and 225; the warm-up is longer than a tenth of the"
            " run: --warmup-steps 25 is that",
        ),
        (
            RECIPES["imagenet128"],
            1_281_167,
            "133,450 steps, 50 epochs of 2,669, 480 images each; learning rate 0.0002 after 500"
            " steps of warm-up, times 0.2 from step 80,070 and 120,105",
        ),
        (
            replace(FOLDER, steps=10, warmup_steps=0, milestones=(5, 1, 2)),
            1000,
            "10 steps, 2 epochs of 5, 200 images each; learning rate 0.0002, times 0.2 from step"
            " 5; the run ends before the milestones 2, 5",
        ),
        (
            replace(FOLDER, steps=5000, milestones=()),
            1000,
            "5,000 steps, 1,000 epochs of 5, 200 images each; learning rate 0.0002 after 500 steps"
            " of warm-up",
        ),
        (
            replace(FOLDER, steps=4999, milestones=()),
            1000,
            "4,999 steps, 999.8 epochs of 5, 200 images each; learning rate 0.0002 after 500 steps"
            " of warm-up; the warm-up is longer than a tenth of the run: --warmup-steps 499 is"
            " that",
        ),
    ],
)
def test_the_schedule_is_one_line(recipe, images, said):
    assert describe_schedule(recipe, images) == f"schedule: {said}"


@pytest.fixture
def _few(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(LOADERS, "digits", few_digits)


@pytest.mark.usefixtures("_few")
def test_epochs_that_are_given_win(tmp_path, capsys):
    """digits has 600 steps of its own."""
    assert main(["pretrain", *SMALL, "--epochs=2", "--warmup-steps=0", "--name=run"]) == 0
    said = "schedule: 6 steps, 2 epochs of 3, 128 images each; learning rate 0.0005\n"
    assert said in capsys.readouterr().err
    config = json.loads((tmp_path / "runs" / "run" / "config.json").read_text())
    assert (config["recipe"]["steps"], config["recipe"]["epochs"]) == (0, 2)
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert (summary["step"], summary["steps"]) == (6, 6)
    assert pretrain(resume=tmp_path / "runs" / "run", progress=False)["steps"] == 6


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs=2", "--steps=5"], "steps is 5 and epochs is 2; give one of them"),
        (["--epochs=0"], "steps is 0 and epochs is 0; one of them must be 1 or more"),
        (["--tau=3"], "tau is given, but mixture is 0; leave --tau out"),
        (
            ["--decay-factor=.5"],
            "decay_factor is given, but there are no milestones; leave --decay-factor out",
        ),
        (
            ["--backbone=resnet18", "--depth=2"],
            "depth is given, but backbone resnet18 has its own; leave --depth out",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(tmp_path, capsys, flags, message):
    assert main(["pretrain", *flags, "--name=run"]) == 2
    assert capsys.readouterr().err == f"amdim-fast: {message}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_few")
def test_what_has_an_effect_is_taken(tmp_path):
    flags = ["--steps=1", "--epochs=0", "--mixture=2", "--tau=3", "--milestones", "7"]
    assert main(["pretrain", *SMALL, *flags, "--decay-factor=.5", "--name=run"]) == 0
    recipe = json.loads((tmp_path / "runs" / "run" / "config.json").read_text())["recipe"]
    assert [recipe[name] for name in ("steps", "tau", "decay_factor")] == [1, 3.0, 0.5]
