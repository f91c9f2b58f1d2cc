import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from amdim_fast import AMDIM, CheckpointError, load_checkpoint, save_checkpoint
from amdim_fast.checkpoints.torch_files import read_checkpoint
from tests.checkpoints.cases import GOLDEN, golden_file, same_state, small_model, written


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"size": 64, "use_bn": True, "n_classes": 4, "in_channels": 1},
        {"size": 128, "ndf": 1, "n_rkhs": 3, "tclip": None, "reg_weight": 0.0},
    ],
)
def test_round_trip(arguments, tmp_path):
    model = small_model(**arguments)
    path = tmp_path / "run.pth"
    save_checkpoint(path, model)
    loaded = load_checkpoint(path)
    assert same_state(model, loaded)
    assert loaded.hyperparams == model.hyperparams
    assert os.listdir(tmp_path) == ["run.pth"]


def test_training_goes_on_from_a_file_as_if_never_stopped(tmp_path):
    batches = torch.randn(4, 2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def train(model, optimizer, scheduler, steps):
        for step in steps:
            optimizer.zero_grad()
            locations = (torch.full((4,), step), torch.full((4,), 24 - step))
            model(*batches[step], locations=locations).loss.backward()
            optimizer.step()
            scheduler.step()

    def parts(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.2)

    straight = small_model()
    train(straight, *parts(straight), range(4))
    first = small_model()
    optimizer, scheduler = parts(first)
    train(first, optimizer, scheduler, range(2))
    save_checkpoint(
        tmp_path / "run.pth",
        first,
        optimizer=optimizer.state_dict(),
        scheduler=scheduler.state_dict(),
        step=2,
        rng=torch.get_rng_state(),
    )
    contents = read_checkpoint(tmp_path / "run.pth")
    second = load_checkpoint(tmp_path / "run.pth")
    optimizer, scheduler = parts(second)
    optimizer.load_state_dict(contents["optimizer"])
    scheduler.load_state_dict(contents["scheduler"])
    train(second, optimizer, scheduler, range(contents["step"], 4))
    assert same_state(straight, second)


def test_loading_leaves_the_random_generator_alone(tmp_path):
    save_checkpoint(tmp_path / "run.pth", small_model())
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "run.pth")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "os.replace"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_changes_nothing(failing, existing, tmp_path, monkeypatch):
    path = tmp_path / "run.pth"
    if existing:
        save_checkpoint(path, small_model(), step=1)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def fail(*arguments):
        if failing == "torch.save":
            arguments[1].write(b"PK half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, small_model(), step=2)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "run.pth", small_model())
    assert os.listdir(tmp_path) == []


def test_saving_replaces_the_file_that_a_link_points_to(tmp_path):
    save_checkpoint(tmp_path / "old.pth", small_model(), step=1)
    (tmp_path / "latest.pth").symlink_to("old.pth")
    save_checkpoint(tmp_path / "latest.pth", small_model(), step=2)
    assert (tmp_path / "latest.pth").is_symlink()
    assert read_checkpoint(tmp_path / "old.pth")["step"] == 2


class Unstorable:
    def __reduce__(self):
        raise RuntimeError("not to be stored")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"state": {"a": [1, Unstorable()]}}, r"\['state'\]\['a'\]\[1\] is a .*Unstorable; "),
        ({"step": np.int64(3)}, r"\['step'\] is a numpy\.int64; it must be a tensor or a plain"),
        ({"hyperparams": {}}, "extra 'hyperparams' has a reserved name"),
        ({"model": {}}, "extra 'model' has a reserved name"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(extra, message, tmp_path):
    path = tmp_path / "run.pth"
    save_checkpoint(path, small_model(), step=1)
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(path, small_model(), **extra)
    assert read_checkpoint(path)["step"] == 1
    assert os.listdir(tmp_path) == ["run.pth"]


def test_wrong_targets_of_saving_are_named(tmp_path):
    model = small_model()
    with pytest.raises(TypeError, match=r"model is a DataParallel; .* wrapper\.module"):
        save_checkpoint(tmp_path / "run.pth", nn.DataParallel(model))
    with pytest.raises(IsADirectoryError, match="is a folder; it must be the name of a file"):
        save_checkpoint(tmp_path, model)
    with pytest.raises(FileNotFoundError, match="absent is not a folder; create it"):
        save_checkpoint(tmp_path / "absent" / "run.pth", model)


def foreign(path, kind):
    whole = (GOLDEN / "amdim_public_32.pth").read_bytes()
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello\n")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "truncated_old":
        torch.save(golden_file(), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": 1}))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "many":
        torch.save({f"key{index:03}": 1 for index in range(999)}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    else:
        torch.save({"optimizer": 1}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("folder", "is a folder; give the checkpoint file in it"),
        ("text", "is not a checkpoint; give a file that torch.save wrote"),
        ("empty", "is empty; give a file"),
        ("truncated", "is truncated or damaged; copy it again or use an earlier file"),
        ("truncated_old", "is damaged, truncated or not a checkpoint .*; copy it again"),
        ("zip", "is a zip of other files; give a checkpoint file"),
        ("pickle", "is damaged, truncated or not a checkpoint .*; copy it again"),
        ("list", "holds a list, not a checkpoint; give a file with a model"),
        ("pipe", "is a device or a pipe; give a checkpoint file"),
        ("many", r"has the keys \['key000', .* 'key019'\] and 979 more and no state dict .*"),
        ("no_model", r"has the keys \['optimizer'\] and no state dict .*; give an AMDIM"),
    ],
)
def test_other_files_are_refused_in_one_sentence(kind, message, tmp_path):
    path = tmp_path / "file.pth"
    foreign(path, kind)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))} {message}") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist; give the path"):
        load_checkpoint(tmp_path / "none.pth")


class Planted:
    def __reduce__(self):
        return os.mkdir, ("planted",)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_not_run(new_format, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = {**golden_file(), "extra": Planted()}
    path = written(tmp_path, file, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"holds a Python object \(\w+\.mkdir\)"):
        load_checkpoint(path)
    assert os.listdir(tmp_path) == ["file.pth"]


def test_map_location_moves_the_model_and_its_own_errors_come_through(tmp_path):
    save_checkpoint(tmp_path / "run.pth", small_model())
    assert next(load_checkpoint(tmp_path / "run.pth", "meta").parameters()).is_meta
    with pytest.raises(RuntimeError, match="device"):
        read_checkpoint(tmp_path / "run.pth", "nonsense")


def test_components_are_loaded_with_their_head(tmp_path):
    model = AMDIM(32, 4, 8, 1, components=3, mixture_hidden=5, tau=2.0, alpha=0.1)
    save_checkpoint(tmp_path / "mixture.pt", model)
    loaded = load_checkpoint(tmp_path / "mixture.pt")
    assert loaded.hyperparams == model.hyperparams
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
