"""What stops ``evaluate`` and its command, in one sentence, before anything is written."""

import copy
from dataclasses import replace

import pytest
import torch

from amdim_fast import (
    AMDIM,
    EvaluationOptions,
    evaluate,
    export_encoder,
    load_checkpoint,
)
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import ImageData
from amdim_fast.data.image_sets import TensorImages
from tests.evaluation.quick import QUICK

pytestmark = pytest.mark.usefixtures("few_digits")


def unlabelled(digits):
    return ImageData(digits.train, None, digits.test, digits.classes)


def without_test(digits):
    return ImageData(digits.train, digits.train, None, digits.classes)


def too_few_names(digits):
    return ImageData(digits.train, digits.train, digits.test, digits.classes[:9])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (unlabelled, {}, "the data set has no labels to learn from"),
        (without_test, {}, "the data set has no test images"),
        (too_few_names, {}, "has the label 9; all labels must be 0 to 8"),
        (None, {"k": 401}, "k is 401; it must be from 1 to 400, the number of training"),
        (None, {"k": 0}, "k is 0; it must be from 1 to 400"),
        (None, {"feature_memory": 4 * 24 * 650 - 1}, "the features of 650 images, 24 float32"),
        (None, {"transductive_bn": True, "methods": ("knn",)}, None),
    ],
)
def test_bad_data_and_options(model, digits, tmp_path, change, options, message):
    data = digits if change is None else change(digits)
    settings = replace(QUICK, **options)
    if message is None:
        few = ImageData(digits.train, digits.train, TensorImages(
            digits.test.images[:199], digits.test.labels[:199]), digits.classes)  # fmt: skip
        data, message = few, "there must be 200 or more"
    with pytest.raises(ValueError, match=message):
        evaluate(model, data, options=settings, out_dir=tmp_path / "out", progress=False)
    assert not list(tmp_path.iterdir())


def test_stored_probes_must_fit(model, digits, checkpoint, tmp_path):
    fifty = AMDIM(32, 6, 24, 1, n_classes=50)
    fifty.preprocessing = model.preprocessing
    options = replace(QUICK, methods=("stored",))
    with pytest.raises(ValueError, match="own probes know 50 classes and the data set has 10"):
        evaluate(fifty, digits, options=options, progress=False)
    export_encoder(checkpoint, tmp_path / "export")
    with pytest.raises(ValueError, match="the model has no probes of its own"):
        evaluate(tmp_path / "export", digits, options=options, progress=False)


def test_bad_models_and_settings(model, digits):
    fresh = AMDIM(32, 6, 24, 1)
    with pytest.raises(ValueError, match="the model has no preprocessing; give policy"):
        evaluate(fresh, digits, options=QUICK, progress=False)
    grey = AMDIM(32, 6, 24, 1, in_channels=1)
    with pytest.raises(
        ValueError, match="the encoder takes images of C = 1 channels; those of the"
    ):
        evaluate(grey, digits, options=QUICK, policy="digits", progress=False)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.encoder.layer_list[0].conv.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="features of image 0 are not finite"):
        evaluate(broken, digits, options=QUICK, progress=False)
    with pytest.raises(ValueError, match="method is 'svm'; it must be one of probes, knn"):
        EvaluationOptions(methods=("svm",))
    with pytest.raises(ValueError, match="temperature is 0; it must be above 0"):
        EvaluationOptions(temperature=0)
    with pytest.raises(ValueError, match="device is 'nowhere'"):
        evaluate(model, digits, device="nowhere", progress=False)


@pytest.mark.parametrize("command", ["evaluate", "bench"])
def test_an_out_that_cannot_be_made_is_said_before_work(tmp_path, capsys, command, monkeypatch):
    monkeypatch.setattr("amdim_fast.cli.bench.compare", pytest.fail)
    out = tmp_path / ("x" * 250)
    model = ["no-such-file"] if command == "evaluate" else []
    assert main([command, *model, f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert f"{out} cannot be created (File name too long); choose another" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_command_on_bad_input(checkpoint, tmp_path, capsys):
    for arguments, message in (
        ([tmp_path / "none.pt"], "none.pt does not exist; give a checkpoint file"),
        ([checkpoint, "--policy=stl10"], "makes views of 64 px and the encoder takes 32"),
        ([checkpoint, "--probe-epochs=0"], "epochs is 0; it must be a whole number"),
        ([checkpoint, "--data=folder", f"--data-dir={tmp_path / 'no'}"], "is not a folder"),
        (
            [checkpoint, "--feature-memory=inf"],
            "--feature-memory is inf; it must be a number of GiB",
        ),
        (
            [checkpoint, "--feature-memory=nan"],
            "--feature-memory is nan; it must be a number of GiB",
        ),
        ([checkpoint, "--feature-memory=-1"], "--feature-memory is -1.0; it must be a number of"),
        ([checkpoint, "--workers=99999"], "workers is 99999; it must be a whole number from 0 to"),
        ([checkpoint, "--feature-memory=0.00001"], "allow more, or use fewer images"),
    ):
        out = tmp_path / "out"
        assert main(["evaluate", *map(str, arguments), f"--out={out}"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()
    assert load_checkpoint(checkpoint).hyperparams["n_rkhs"] == 24
