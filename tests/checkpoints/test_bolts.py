"""Files of lightning-bolts, whose classes are pickled by name and never imported."""

import argparse
import pathlib
import sys
import types

import pytest
import torch
from torch import nn

from amdim_fast import CheckpointError, FeatureMapContrastiveTask, load_checkpoint
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.model.encoder import Encoder
from tests.checkpoints.cases import assert_golden, golden_file, rename, written

SIZE = 128
LOSSES = "pl_bolts.losses.self_supervised_learning"
CHECKPOINTS = "pytorch_lightning.callbacks.model_checkpoint"
STOPPING = "pytorch_lightning.callbacks.early_stopping"
PARSING = "pytorch_lightning.utilities.parsing"
NETWORKS = "pl_bolts.models.self_supervised.amdim.networks"


@pytest.fixture
def library():
    """A class with the name under which a library pickles its own; gone when files are read."""
    patch = pytest.MonkeyPatch()

    def make(module, name, base=object):
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            path = ".".join(parts[:count])
            if path not in sys.modules:
                patch.setitem(sys.modules, path, types.ModuleType(path))
        made = type(name, (base,), {"__module__": module})
        setattr(sys.modules[module], name, made)
        return made

    make.forget = patch.undo
    yield make
    patch.undo()


def checkpoint(**changes):
    stored = golden_file(SIZE)
    state = rename(
        stored["model"],
        (r"^(evaluator|g2l_loss)\.", None),
        (r"^encoder\.module\.", "encoder."),
        (r"bn_hid", "bn1"),
    )
    hyperparams = {
        "datamodule": "imagenet2012",
        "encoder": "amdim_encoder",
        "image_channels": 3,
        "image_height": SIZE,
        "encoder_feature_dim": stored["hyperparams"]["ndf"],
        "embedding_fx_dim": stored["hyperparams"]["n_rkhs"],
        "conv_block_depth": stored["hyperparams"]["n_depth"],
        "use_bn": 0,
        "tclip": 15.0,
        "num_classes": 10,
    }
    return {"epoch": 3, "state_dict": state, "hyper_parameters": hyperparams | changes}


def check(path, tclip=15.0):
    before = set(sys.modules)
    model = load_checkpoint(path)
    assert_golden(model, SIZE, probes=False)
    assert model.g2l_loss.tclip == tclip
    assert model.evaluator is None
    assert not any(name.startswith(("pl_bolts", "pytorch_")) for name in set(sys.modules) - before)
    assert "pl_bolts" not in str(torch.serialization.get_safe_globals())


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
def test_the_task_in_the_hyperparameters(library, tmp_path):
    task = library(LOSSES, "FeatureMapContrastiveTask", nn.Module)()
    task.masks = {5: torch.zeros(2)}
    task.nce_loss = library(LOSSES, "AmdimNCELoss", nn.Module)()
    contents = checkpoint(contrastive_task=task)
    path = written(tmp_path, contents)
    library.forget()
    check(path)


@pytest.mark.parametrize("new_format", [True, False])
def test_callbacks_under_their_classes(library, new_format, tmp_path):
    callbacks = {
        library(CHECKPOINTS, "ModelCheckpoint"): {"best_model_score": torch.ones(())},
        library(STOPPING, "EarlyStopping"): {"wait_count": 2, "dirpath": pathlib.Path("a")},
        library("pl_bolts.callbacks.ssl_online", "SSLOnlineEvaluator"): {},
    }
    contents = {"callbacks": callbacks, **checkpoint(data_dir=pathlib.Path("b"))}
    path = written(tmp_path, contents, _use_new_zipfile_serialization=new_format)
    library.forget()
    check(path)


def test_our_own_task_in_the_hyperparameters(tmp_path):
    contents = checkpoint(contrastive_task=FeatureMapContrastiveTask("01, 02, 11", tclip=20.0))
    check(written(tmp_path, contents))


def test_our_own_encoder_in_the_hyperparameters(tmp_path):
    check(written(tmp_path, checkpoint(encoder=Encoder(SIZE, 2, 16, 1))))


def test_hyperparameters_that_are_lightning_s_own_dict(library, tmp_path):
    contents = checkpoint()
    attributes = library(PARSING, "AttributeDict", dict)
    contents["hyper_parameters"] = attributes(contents["hyper_parameters"])
    path = written(tmp_path, contents)
    library.forget()
    check(path)


def test_an_encoder_object_in_the_hyperparameters(library, tmp_path):
    encoder = library(NETWORKS, "AMDIMEncoder", nn.Module)()
    encoder.layer_list = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)])
    path = written(tmp_path, checkpoint(encoder=encoder))
    library.forget()
    check(path)


def test_contents_of_objects_are_dropped(library, tmp_path):
    made = library(CHECKPOINTS, "ModelCheckpoint")()
    made.__dict__["__class__"] = "anything"
    made.weights = torch.zeros(1000)
    path = written(tmp_path, {"callback": made})
    library.forget()
    read = read_checkpoint(path)["callback"]
    assert type(read).__name__ == "_Inert"
    assert vars(read) == {}


@pytest.mark.parametrize(
    ("module", "name"),
    [("pl_boltsy.losses", "Task"), ("lightningrod", "Callback"), ("my_project", "Encoder")],
)
def test_objects_of_other_modules_are_refused(library, module, name, tmp_path):
    path = written(tmp_path, checkpoint(contrastive_task=library(module, name)()))
    library.forget()
    with pytest.raises(CheckpointError, match=rf"holds a Python object \({module}\.{name}\)"):
        load_checkpoint(path)


class Called:
    """Pickled as a call of a function with an argument."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


def test_functions_under_the_names_of_libraries_are_not_called(library, tmp_path):
    calls = []

    def planted(argument):
        calls.append(argument)

    planted.__module__, planted.__qualname__ = "pytorch_lightning.utilities.seed", "planted"
    library("pytorch_lightning.utilities.seed", "other")
    sys.modules["pytorch_lightning.utilities.seed"].planted = planted
    check(written(tmp_path, checkpoint(kwargs=Called(planted, "a"))))
    assert calls == []
    path = written(tmp_path, checkpoint(kwargs=Called(argparse.ArgumentParser, "a")))
    with pytest.raises(CheckpointError, match=r"holds a Python object \(argparse\.ArgumentParser"):
        load_checkpoint(path)
