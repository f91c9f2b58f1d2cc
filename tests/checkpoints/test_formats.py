import pytest
import torch

from amdim_fast import AMDIM, CheckpointError, load_checkpoint, save_checkpoint
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


@pytest.mark.parametrize(
    ("stored", "argument"),
    [
        ("res_block_depth", "depth"),
        ("ndf", "ndf"),
        ("n_rkhs", "n_rkhs"),
        ("encoder_size", "size"),
        ("in_channels", "in_channels"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_named(stored, argument, tmp_path):
    file = golden_file()
    file["hyperparams"]["res_block_depth"] = file["hyperparams"].pop("n_depth")
    found = {**file["hyperparams"], "in_channels": 3}[stored]
    file["hyperparams"][stored] = 10**7
    message = rf"file\.pth says that {argument} is 10000000, but its weights are those of {found}$"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(written(tmp_path, file))


def test_old_serialisation_loads(tmp_path):
    path = written(tmp_path, golden_file(), _use_new_zipfile_serialization=False)
    assert_golden(load_checkpoint(path), 32)


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
    name = next(name for name in file["model"] if name.endswith("layer_list.1.conv1.weight"))
    stored, file["model"][name] = file["model"][name], torch.zeros(3, 3)
    shapes = r"of another shape: encoder\.layer_list\.1\.conv1\.weight \[3, 3\] instead of \[4, 4"
    with pytest.raises(CheckpointError, match=shapes):
        load_checkpoint(written(tmp_path, file))
    file["model"][name] = stored
    for changed, message in (
        ({"n_depth": True}, "says that depth is True"),
        ({"n_depth": "4"}, "has a str for n_depth; it must be a plain number"),
        ({"tclip": torch.tensor(4.0)}, "has a Tensor for tclip; it must be a plain number"),
        ({"tclip": -1.0}, "has hyperparameters that fit no AMDIM: tclip is -1"),
    ):
        hyperparams = file["hyperparams"] | changed
        path = written(tmp_path, file | {"hyperparams": hyperparams})
        with pytest.raises(CheckpointError, match=rf"file\.pth {message}"):
            load_checkpoint(path)
    for given in (torch.zeros(2), [1], "text"):
        with pytest.raises(CheckpointError, match=r"under 'hyperparams'; it must be a dict"):
            load_checkpoint(written(tmp_path, file | {"hyperparams": given}))
    file = golden_file()
    file["model"].update(rename(file["model"], (ENCODER, "encoder.")))
    with pytest.raises(CheckpointError, match=r"holds encoder\.layer_list\.0\.conv\.weight twice"):
        load_checkpoint(written(tmp_path, file))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"policy": "none"}, "states a policy that cannot be: policy is 'none'; it must be one of"),
        ({"policy": "stl10"}, "states a policy that cannot be: policy 'stl10' makes views of 64"),
        ({"policy": ["cifar"]}, "has a list for the recipe's policy; it must be text"),
        ({"name": torch.zeros(1)}, "has a Tensor for the recipe's name; it must be text"),
    ],
)
def test_recipes_of_checkpoints_are_checked(recipe, message, tmp_path):
    save_checkpoint(tmp_path / "run.pt", small_model(), recipe=recipe)
    with pytest.raises(CheckpointError, match=r"run\.pt (states|has)") as caught:
        AMDIM.from_pretrained(tmp_path / "run.pt")
    assert message in str(caught.value)
