"""Images that are too small for the views, or too large: file, reason and option are named."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from amdim_fast import evaluate, pretrain
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.cli.main import main
from amdim_fast.data.packed_store import read_store
from amdim_fast.evaluation.scoring import EvaluationOptions
from amdim_fast.training.recipes import RECIPES
from tests.data.image_files import picture, write_folder
from tests.training.tiny import TINY

RECIPE = replace(
    TINY, data="folder", policy="cifar", batch_size=8, steps=2, checkpoint_every=50, baselines=False
)
TOO_SMALL = (
    "is 3 x 3 pixels, but the policy moves images by up to 4 pixels: both sides must be 5 or more,"
    " or take another --policy"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twelve images of 20 x 30 pixels in two classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "folder", RECIPE)
    write_folder(tmp_path / "images", train=6, test=4)
    return tmp_path / "images" / "train" / "cat"


def run(*options):
    return main(["pretrain", "--recipe=folder", "--data-dir=images", "--workers=0", *options])


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def test_images_too_small_for_the_views(folder, tmp_path, capsys):
    small = folder / "small.png"
    Image.fromarray(picture(0, 3, 3)).save(small)
    assert run("--name=run", "--batch-size=12") == 2
    step = read_checkpoint(tmp_path / "runs" / "run" / "checkpoint.pt")["step"]
    assert last_line(capsys) == (
        f"amdim-fast: {small} {TOO_SMALL}; the last good checkpoint is runs/run/checkpoint.pt, of"
        f" step {step}; repair it, or leave it out with --resume runs/run --skip-bad"
    )
    assert main(["pretrain", "--resume=runs/run", "--workers=0"]) == 2  # still there
    assert main(["pretrain", "--resume=runs/run", "--skip-bad"]) == 0
    contents = read_checkpoint(tmp_path / "runs" / "run" / "checkpoint.pt")
    assert (contents["step"], contents["data"]["images"]) == (2, 12)
    assert run("--name=new", "--skip-bad") == 0
    listed = json.loads((tmp_path / "runs" / "new" / "left_out.json").read_text())
    assert listed["train"] == {"train/cat/small.png": f"{small} {TOO_SMALL}"}
    assert run("--name=digits", "--policy=digits", "--batch-size=13") == 0  # moves no image


def test_packed_images_too_small_for_the_views(folder, capsys):
    Image.fromarray(picture(0, 3, 3)).save(folder / "small.png")
    assert main(["pack", "images", "store", "--workers=0"]) == 0
    assert run("--name=run", "--data-dir=store") == 2
    assert last_line(capsys) == f"amdim-fast: train/cat/small.png {TOO_SMALL}"
    assert run("--name=run", "--data-dir=store", "--policy=digits") == 0


def test_images_of_many_pixels(folder, tmp_path, capsys, monkeypatch):
    """The bound reaches training, its worker processes, the resumed run, pack and evaluate."""
    Image.fromarray(picture(0, 60, 50)).save(folder / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    said = f"{folder / 'large.png'} has 3,000 pixels, more than 1,400; allow them with --max-pixels"
    everything = ["--batch-size=13", "--name=run"]
    assert run(*everything) == 2
    assert f"{said} 3000; the last good checkpoint" in last_line(capsys)
    assert run(*everything, "--max-pixels=0", "--name=x") == 2
    assert "max_pixels is 0; it must be a whole number, 1 or more" in last_line(capsys)
    assert main(["pretrain", "--resume=runs/run", "--workers=1", "--max-pixels=3000"]) == 0
    assert read_checkpoint(tmp_path / "runs" / "run" / "checkpoint.pt")["max_pixels"] == 3000

    pretrain(replace(RECIPE, batch_size=13, steps=1), "images", name="short", max_pixels=3000,
             workers=0, progress=False)  # fmt: skip
    contents = read_checkpoint(tmp_path / "runs" / "short" / "checkpoint.pt")
    assert (contents["max_pixels"], contents["step"]) == (3000, 1)
    assert pretrain(resume=tmp_path / "runs" / "short", workers=0, progress=False)["step"] == 1

    assert main(["pack", "images", "store", "--workers=0"]) == 2
    assert f"{said} 3000; --skip-bad leaves such files out" in last_line(capsys)
    assert main(["pack", "images", "store", "--workers=0", "--max-pixels=3000"]) == 0
    assert len(read_store("store").splits["train"]) == 13  # nothing had been packed before
    assert main(["pack", "images", "few", "--workers=0", "--max-pixels=2999", "--skip-bad"]) == 0
    assert len(read_store("few").splits["train"]) == 12

    options = EvaluationOptions(methods=("knn",), k=3, workers=0)
    model = tmp_path / "runs" / "run" / "checkpoint.pt"
    with pytest.raises(ValueError, match=r"large\.png has 3,000 pixels, more than 1,400; allow"):
        evaluate(model, "folder", data_dir="images", options=options, progress=False)
    result = evaluate(
        model, "folder", data_dir="images", options=options, progress=False, max_pixels=3000
    )
    assert result["train_images"] == 13
