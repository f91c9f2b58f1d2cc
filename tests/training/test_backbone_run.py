"""A run over a network of torchvision: trained, resumed, evaluated, exported, segmented."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from amdim_fast import (
    CheckpointError,
    EvaluationOptions,
    Recipe,
    evaluate,
    export_encoder,
    load_checkpoint,
    load_pretrained,
    pretrain,
    save_checkpoint,
)
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.cli.info import describe_model
from amdim_fast.cli.main import main
from amdim_fast.evaluation.probe_training import ProbeSchedule
from amdim_fast.segmentation.posterior import segment
from tests.model.backbone_cases import make_over
from tests.training.tiny import TINY

BACKBONE = "mobilenet_v3_small"
RECIPE = replace(
    TINY,
    backbone=BACKBONE,
    mixture=2,
    steps=6,
    log_every=1,
    checkpoint_every=3,
    keep_every=3,
    micro_batch=8,
    precision="float32",
    baselines=False,
)


pytestmark = pytest.mark.usefixtures("few_digits_loaded")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    pretrain(RECIPE, name="run", runs_dir=folder, device="cpu", progress=False)
    return folder / "run"


def test_it_trains(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    losses = [record["loss_1t5"] + record["loss_1t7"] + record["loss_5t5"] for record in records]
    assert losses[-1] < losses[0]
    counts = {
        int(value)
        for name, value in load_checkpoint(run / "checkpoint.pt").state_dict().items()
        if name.startswith("encoder.") and name.endswith("num_batches_tracked")
    }
    assert counts == {6 * 2 * 2}  # steps, views, micro-batches


def test_it_resumes_to_the_same_bits(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.copy(run / "checkpoint-00000003.pt", folder / "checkpoint.pt")
    assert read_checkpoint(folder / "checkpoint.pt")["step"] == 3
    summary = pretrain(resume=folder, progress=False)
    assert summary["step"] == 6
    states = [load_checkpoint(path / "checkpoint.pt").state_dict() for path in (run, folder)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert {name for name in states[0] if name.startswith("encoder.network.features.0.0")} == {
        "encoder.network.features.0.0.weight"
    }
    with pytest.raises(ValueError, match=f"backbone is None; it must be '{BACKBONE}', as when the"):
        pretrain(replace(RECIPE, backbone=None), resume=folder, progress=False)


def test_its_file_is_evaluated_exported_described_and_segments(run, tmp_path):
    path = run / "checkpoint.pt"
    model, trained = load_checkpoint(path), read_checkpoint(path)
    assert model.hyperparams["backbone"] == trained["hyperparams"]["backbone"] == BACKBONE
    assert all(torch.equal(trained["model"][name], v) for name, v in model.state_dict().items())
    options = EvaluationOptions(k=3, schedule=ProbeSchedule(3, (2,), batch_size=50))
    result = evaluate(path, "digits", options=options, device="cpu", progress=False)
    assert result["features"] == RECIPE.n_rkhs
    assert set(result["accuracy"]) >= {"linear", "mlp"}
    export_encoder(path, tmp_path / "export")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["architecture"] == {
        "backbone": BACKBONE,
        "size": 32,
        "n_rkhs": RECIPE.n_rkhs,
        "in_channels": 3,
    }
    shared, images = load_pretrained(tmp_path / "export"), torch.randn(3, 3, 32, 32)
    whole = load_pretrained(path)
    assert torch.equal(shared.encode(images), whole.encode(images))
    assert describe_model(tmp_path / "export")["architecture"] == f"{BACKBONE}, n_rkhs 16"
    assert segment(model, images).shape == (3, 2, 7, 7)


def test_files_that_name_no_network(run, tmp_path):
    contents = read_checkpoint(run / "checkpoint.pt")
    for name, said in (
        ("resnet5", "fit no AMDIM: backbone is 'resnet5'; it must be a classification network"),
        ("resnet18", "does not fit its hyperparameters .*missing: encoder.network.bn1.bias"),
        (3, "has a int for backbone; it must be text"),
    ):
        contents["hyperparams"]["backbone"] = name
        torch.save(contents, tmp_path / "changed.pt")
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(tmp_path / "changed.pt")
    contents["hyperparams"] |= {"backbone": BACKBONE, "encoder_size": 10**6}
    torch.save(contents, tmp_path / "changed.pt")
    with pytest.raises(CheckpointError, match=r"size is 1000000; it must be .* from 1 to 1024"):
        load_checkpoint(tmp_path / "changed.pt")


def test_a_module_of_ones_own_is_saved_and_loaded_by_its_weights(tmp_path):
    path = tmp_path / "own.pt"
    model, other = make_over(), make_over()
    with torch.no_grad():
        model.encoder.network.convs[0].weight.add_(1)
    save_checkpoint(path, model)
    with pytest.raises(CheckpointError, match=r"network that was given as a module, which no file"):
        load_checkpoint(path)
    other.load_state_dict(read_checkpoint(path)["model"])
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(model.encode(images), other.encode(images))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--backbone", "resnet5"], "backbone is 'resnet5'; it must be a classification network"),
        (["--backbone", "resnet18", "--checkpoint-blocks"], "and checkpoint_blocks is on; it is"),
        (["--backbone", "resnet18", "--use-bn"], "backbone is 'resnet18' and use_bn is on; it is"),
    ],
)
def test_the_command_says_what_cannot_be(flags, said, tmp_path, capsys):
    assert main(["pretrain", "--runs-dir", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_trains(tmp_path):
    flags = ["--steps=1", "--batch-size=4", "--n-rkhs=8", "--no-baselines", "--device=cpu"]
    assert main(["pretrain", "--runs-dir", str(tmp_path), "--backbone", BACKBONE, *flags]) == 0
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "config.json").read_text())["recipe"]["backbone"] == BACKBONE


def test_recipes_of_older_runs_have_the_papers_encoder():
    values = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    del values["backbone"]
    assert Recipe.from_dict(values) == TINY
    assert TINY.backbone is None
