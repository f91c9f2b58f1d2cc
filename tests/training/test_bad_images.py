"""A bad image costs a run no step: it is saved, and goes on without the file."""

import json
import shutil
from dataclasses import replace
from itertools import islice

import pytest
import torch

from amdim_fast import pretrain
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.cli.main import main
from amdim_fast.data import channels, datasets
from amdim_fast.data.decoding import decode
from amdim_fast.data.loader import training_indices
from amdim_fast.data.packing import pack
from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.run import Run
from tests.data.image_files import write_folder
from tests.training.test_resume import assert_same
from tests.training.tiny import TINY

RECIPE = replace(
    TINY, data="folder", policy="cifar", batch_size=8, steps=7, checkpoint_every=50, baselines=False
)
WITHOUT = {"runs_dir": ".", "workers": 0, "progress": False}


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """A folder of 40 images, one of which, that of step 3, is cut short: its name and its bytes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "folder", RECIPE)
    names = list(write_folder(tmp_path / "images", train=20, test=0, sizes=((32, 32),)))
    third = next(islice(training_indices(40, 8, seed=0), 2, None))
    name = names[int(third[5])]
    path = tmp_path / "images" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    return name, whole


def stopped(tmp_path, capsys, *options):
    """The error that ends the run at the bad image."""
    arguments = ["pretrain", "--recipe=folder", "--data-dir=images", "--name=run", "--workers=1"]
    assert main([*arguments, f"--runs-dir={tmp_path}", *options]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def final(folder):
    return read_checkpoint(folder / "checkpoint.pt")


def test_the_steps_before_are_saved(tmp_path, capsys, bad):
    name, whole = bad
    run, path = tmp_path / "run", tmp_path / "images" / name
    error = stopped(tmp_path, capsys)
    assert error.startswith(f"amdim-fast: {path} is damaged or truncated (")
    assert error.endswith(
        f"; the last good checkpoint is {run / 'checkpoint.pt'}, of step 2; repair it, or leave it"
        f" out with --resume {run} --skip-bad"
    )
    assert final(run)["step"] == 2
    path.write_bytes(whole)
    pretrain(resume=run, progress=False)
    pretrain(RECIPE, "images", name="whole", **WITHOUT)
    found, expected = final(run), final(tmp_path / "whole")
    assert found.pop("left_out") == expected.pop("left_out") == 0
    assert_same(found, expected)


def test_a_run_goes_on_without_the_file(tmp_path, capsys, bad, monkeypatch):
    name, _ = bad
    run = tmp_path / "run"
    stopped(tmp_path, capsys)
    assert main(["pretrain", f"--resume={run}"]) == 2  # still there
    assert final(run)["step"] == 2
    capsys.readouterr()
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)

    assert main(["pretrain", f"--resume={run}", "--skip-bad"]) == 0
    said = "resuming after step 2 with 39 training images; before, there were 40\n"
    assert said in capsys.readouterr().err
    contents = final(run)
    assert (contents["step"], contents["data"]["images"], contents["left_out"]) == (7, 39, 1)
    listed = json.loads((run / "left_out.json").read_text())
    assert listed["train"].keys() == {name}
    assert listed["train"][name].startswith(f"{tmp_path / 'images' / name} is damaged")
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {"step": 2, "images": 39, "images_before": 40} in records

    def looked(*_arguments, **_options):
        raise AssertionError("every file was decoded again")

    monkeypatch.setattr(datasets, "find_bad", looked)
    assert main(["pretrain", f"--resume={run}"]) == 0

    (tmp_path / "images" / name).unlink()  # by hand
    assert main(["pretrain", f"--resume={run}"]) == 0
    assert main(["pretrain", f"--resume={copy}"]) == 0
    assert final(copy)["data"]["images"] == 39
    assert_same(final(copy)["model"], contents["model"])

    next((tmp_path / "images" / "train" / "dog").glob("*.png")).unlink()
    capsys.readouterr()
    assert main(["pretrain", f"--resume={copy}"]) == 2
    assert "has 38 training images of 2 classes, but it had 39" in capsys.readouterr().err


def test_a_run_that_skips_lists_what_it_left_out(tmp_path, bad):
    name, _ = bad
    pretrain(replace(RECIPE, steps=1), "images", name="run", skip_bad=True, **WITHOUT)
    listed = json.loads((tmp_path / "run" / "left_out.json").read_text())
    assert {split: list(names) for split, names in listed.items()} == {"train": [name], "test": []}
    (tmp_path / "run" / "left_out.json").write_text("[]")
    with pytest.raises(ValueError, match=r"left_out\.json is damaged; remove it, and resume with"):
        pretrain(resume=tmp_path / "run", progress=False)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_run_goes_on_with_a_store_of_its_other_images(tmp_path, bad, skip_bad):
    """Files that were left out have other names there, or none."""
    pretrain(replace(RECIPE, steps=1), "images", name="run", skip_bad=True, **WITHOUT)
    assert final(tmp_path / "run")["left_out"] == 1
    pack("images", "store", skip_bad=True, workers=0, progress=False)
    options = {"data_dir": "store", "skip_bad": skip_bad, "progress": False}
    pretrain(RECIPE, resume="run", **options)
    contents = final(tmp_path / "run")
    assert (contents["step"], contents["data"]["images"]) == (7, 39)
    shutil.rmtree(tmp_path / "images" / "train" / "cat")
    pack("images", "fewer", skip_bad=True, workers=0, progress=False)
    with pytest.raises(ValueError, match="but it had 39 of"):
        pretrain(resume="run", data_dir="fewer", progress=False)


def test_want_of_memory_costs_no_step_and_no_image(tmp_path, capsys, bad, monkeypatch):
    name, _ = bad

    def without_memory(path, **options):
        if path == tmp_path / "images" / name:
            raise MemoryError(f"there is no memory to decode {path}")
        return decode(path, **options)

    monkeypatch.setattr(channels, "decode", without_memory)
    error = stopped(tmp_path, capsys, "--workers=0")
    assert error.endswith(f"of step 2; go on with --resume {tmp_path / 'run'}")
    assert final(tmp_path / "run")["step"] == 2
    assert not (tmp_path / "run" / "left_out.json").exists()


def test_views_that_fail_undo_their_draw(tmp_path, monkeypatch, bad):
    """The generator of the checkpoint is as before the step that failed."""
    name, whole = bad
    (tmp_path / "images" / name).write_bytes(whole)
    views = Run._next_views

    def failing(self):
        found = views(self)
        if self.training.step == 3:
            raise ValueError("planted")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_next_views", failing)
        with pytest.raises(ValueError, match=r"^planted$"):
            pretrain(RECIPE, "images", name="run", **WITHOUT)
    assert final(tmp_path / "run")["step"] == 3
    pretrain(resume=tmp_path / "run", progress=False)
    pretrain(RECIPE, "images", name="whole", **WITHOUT)
    found, expected = final(tmp_path / "run"), final(tmp_path / "whole")
    assert torch.equal(found["generators"]["views"], expected["generators"]["views"])
    assert_same(found["model"], expected["model"])
