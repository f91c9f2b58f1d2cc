import sys
import types

import pytest
import torch
from torch import nn

from amdim_fast import CheckpointError, load_checkpoint
from tests.checkpoints.cases import (
    GOLDEN,
    SIZES,
    assert_golden,
    golden_file,
    rename,
    small_model,
    written,
)


@pytest.mark.parametrize("size", SIZES)
def test_public_files_load(size):
    model = load_checkpoint(GOLDEN / f"amdim_public_{size}.pth")
    assert_golden(model, size)
    stored = golden_file(size)["hyperparams"]
    assert {name: model.hyperparams[name] for name in stored} == stored


ENCODER = r"^encoder\.module\."
VARIANTS = {
    "own_names": [(ENCODER, "encoder."), (r"^g2l_loss\.", None)],
    "whole_model_wrapped": [(r"^", "module.")],
    "whole_model_wrapped_own_names": [(ENCODER, "module.encoder.")],
    "compiled": [(ENCODER, "_orig_mod.encoder.")],
    "compiled_encoder": [(ENCODER, "encoder._orig_mod.")],
    "old_head_names": [(r"bn_hid", "bn1")],
    "no_probes": [(r"^evaluator\.", None)],
    "bare_encoder": [(r"^(evaluator|g2l_loss)\.", None), (ENCODER, "")],
    "wrapped_encoder": [(r"^(evaluator|g2l_loss)\.", None), (ENCODER, "module.")],
    "bolts": [(r"^(evaluator|g2l_loss)\.", None), (ENCODER, "encoder."), (r"bn_hid", "bn1")],
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_naming_loads(variant, size, tmp_path):
    file = golden_file(size)
    file["model"] = rename(file["model"], *VARIANTS[variant])
    if variant in ("old_head_names", "bolts"):
        first = next(name for name in file["model"] if "layer_list.0.conv.weight" in name)
        for index in (0, 1):
            for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                name = first.replace("0.conv.weight", f"{index}.bn.bn.{kind}")
                file["model"][name] = torch.zeros(2)
    model = load_checkpoint(written(tmp_path, file))
    probes = any("block_glb" in name for name in file["model"])
    assert (model.evaluator is not None) == probes
    assert_golden(model, size, probes)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_read_off_the_weights_where_the_file_names_none(size, tmp_path):
    file = golden_file(size)
    model = load_checkpoint(written(tmp_path, {"model": file["model"], "info_epochs": 3}))
    assert_golden(model, size)
    expected = {**file["hyperparams"], "in_channels": 3, "reg_weight": 5e-2}
    assert model.hyperparams == expected
    assert_golden(load_checkpoint(written(tmp_path, file["model"])), size)


@pytest.mark.parametrize("use_bn", [False, True])
def test_use_bn_is_read_off_the_statistics(use_bn, tmp_path):
    model = small_model(use_bn=use_bn)
    model.encoder(torch.randn(2, 3, 32, 32))
    assert load_checkpoint(written(tmp_path, model.state_dict())).encoder.use_bn is use_bn


def test_older_depth_name_and_stored_tclip_and_use_bn_count(tmp_path):
    file = golden_file()
    depth = file["hyperparams"].pop("n_depth")
    file["hyperparams"].update(res_block_depth=depth, tclip=13.0, use_bn=True)
    model = load_checkpoint(written(tmp_path, file))
    assert model.hyperparams["n_depth"] == depth
    assert model.g2l_loss.tclip == 13.0
    assert model.encoder.use_bn


def test_stored_depth_is_not_overruled_by_the_weights(tmp_path):
    file = golden_file()
    file["hyperparams"]["res_block_depth"] = file["hyperparams"].pop("n_depth") + 1
    missing = r"missing: encoder\.layer_list\.2\.layer_list\.2\.bn1\.bn\.bias, "
    with pytest.raises(CheckpointError, match=missing):
        load_checkpoint(written(tmp_path, file))


def test_old_serialisation_loads(tmp_path):
    path = written(tmp_path, golden_file(), _use_new_zipfile_serialization=False)
    assert_golden(load_checkpoint(path), 32)


def bolts_losses(monkeypatch):
    """Stand-ins with the names under which lightning-bolts pickles its loss modules."""
    module = types.ModuleType("pl_bolts.losses.self_supervised_learning")
    for name in ("AmdimNCELoss", "FeatureMapContrastiveTask"):
        made = type(name, (nn.Module,), {"__module__": module.__name__})
        setattr(module, name, made)
    for name in ("pl_bolts", "pl_bolts.losses"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    task = module.FeatureMapContrastiveTask()
    task.masks = {5: torch.zeros(2)}
    task.nce_loss = module.AmdimNCELoss()
    return task


def test_lightning_bolts_files_load(tmp_path, monkeypatch):
    stored = golden_file(128)
    hyperparams = {
        "datamodule": "imagenet2012",
        "encoder": "amdim_encoder",
        "image_channels": 3,
        "image_height": 128,
        "encoder_feature_dim": stored["hyperparams"]["ndf"],
        "embedding_fx_dim": stored["hyperparams"]["n_rkhs"],
        "conv_block_depth": stored["hyperparams"]["n_depth"],
        "use_bn": 0,
        "tclip": 15.0,
        "num_classes": 10,
    }
    with monkeypatch.context() as patch:
        hyperparams["contrastive_task"] = bolts_losses(patch)
        path = written(
            tmp_path,
            {
                "epoch": 3,
                "state_dict": rename(stored["model"], *VARIANTS["bolts"]),
                "hyper_parameters": hyperparams,
            },
        )
    model = load_checkpoint(path)
    assert_golden(model, 128, probes=False)
    assert model.g2l_loss.tclip == 15.0
    assert model.evaluator is None
    assert "pl_bolts" not in str(torch.serialization.get_safe_globals())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [(r"rkhs_block_7\.conv2\.weight", None)],
            r"missing: \S+_7\.conv2\.weight$",
        ),
        (
            [(r"(.*)shortcut\.bias", r"\1shortcut.odd")],
            r"unexpected: \S+_5\.shortcut\.odd",
        ),
        (
            [(r"layer_list\.0\.conv\.weight", None)],
            r"no weight '\S+\.0\.conv\.weight'; it",
        ),
        ([(r"block_glb_lin", None)], r"unexpected: evaluator\.block_glb_mlp\.block_forward\.2"),
        ([(r"^evaluator\.", "head.")], r"unexpected: head\.block_glb_lin"),
    ],
)
def test_keys_that_do_not_fit_are_named(changes, message, tmp_path):
    file = golden_file()
    file["model"] = rename(file["model"], *changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(written(tmp_path, file))


def test_shapes_hyperparameters_and_doubles_that_do_not_fit_are_named(tmp_path):
    file = golden_file()
    file["hyperparams"]["ndf"] = 3
    shapes = (
        r"of another shape: .*layer_list\.0\.conv\.weight \[4, 3, 3, 3\] instead of \[3, 3, 3, 3\]"
    )
    with pytest.raises(CheckpointError, match=shapes):
        load_checkpoint(written(tmp_path, file))
    file["hyperparams"]["ndf"] = "4"
    with pytest.raises(CheckpointError, match="hyperparameters that fit no AMDIM: ndf is '4'"):
        load_checkpoint(written(tmp_path, file))
    file = golden_file()
    file["model"].update(rename(file["model"], (ENCODER, "encoder.")))
    with pytest.raises(CheckpointError, match=r"holds encoder\.layer_list\.0\.conv\.weight twice"):
        load_checkpoint(written(tmp_path, file))
