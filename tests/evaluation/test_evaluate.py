"""``evaluate`` and its command: from a file and a data set to figures."""

import copy
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from amdim_fast import (
    EvaluationOptions,
    Preprocessing,
    evaluate,
    export_encoder,
    save_checkpoint,
)
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import ImageData
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.evaluation.figures import RIGHT, WRONG, draw_confusion, neighbour_sheet
from amdim_fast.views.params import POLICIES
from amdim_fast.views.sheets import GAP
from tests.data.image_files import write_folder
from tests.evaluation.quick import QUICK, features_of
from tests.processes import run, start

pytestmark = pytest.mark.usefixtures("few_digits")


def test_figures_are_those_of_a_plain_computation(model, digits, tmp_path):
    from sklearn.neighbors import KNeighborsClassifier

    options = replace(QUICK, methods=("stored", "knn", "logistic"))
    result = evaluate(model, digits, options=options, out_dir=tmp_path / "out", progress=False)
    train, test = features_of(model, digits.train), features_of(model, digits.test)
    judge = KNeighborsClassifier(5, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    judge.fit(train, digits.train.labels)
    truth = digits.test.labels
    with torch.no_grad():
        mlp, linear = copy.deepcopy(model.evaluator).eval()(test)
    expected = {
        "stored_linear": float((linear.argmax(1) == truth).double().mean()),
        "stored_mlp": float((mlp.argmax(1) == truth).double().mean()),
        "knn": judge.score(test, truth),
    }
    assert list(result["accuracy"]) == ["stored_linear", "stored_mlp", "knn", "logistic"]
    for method, accuracy in expected.items():
        assert result["accuracy"][method]["top1"] == pytest.approx(accuracy, abs=1e-9)
    in_five = (linear.topk(5).indices == truth[:, None]).any(1).double().mean()
    assert result["accuracy"]["stored_linear"]["top5"] == pytest.approx(float(in_five), abs=1e-9)
    assert result["accuracy"]["knn"]["top1"] > 0.25
    assert (result["train_images"], result["test_images"], result["classes"]) == (400, 250, 10)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(
        json.dumps(result)
    )
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"evaluation.json", "confusion.png", "neighbours.png"}


def test_nothing_of_the_model_changes(model, digits, checkpoint):
    content = checkpoint.read_bytes()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for transductive in (False, True):
        options = replace(QUICK, methods=("probes", "stored", "knn"), transductive_bn=transductive)
        evaluate(model, digits, options=options, progress=False)
        evaluate(checkpoint, digits, options=options, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert checkpoint.read_bytes() == content


def test_the_same_from_model_checkpoint_and_export(model, digits, checkpoint, tmp_path):
    export_encoder(checkpoint, tmp_path / "export")
    results = [
        evaluate(given, "digits", options=QUICK, progress=False)["accuracy"]
        for given in (model, checkpoint, tmp_path / "export")
    ]
    assert results[0] == results[1] == results[2]
    assert list(results[0]) == ["linear", "mlp", "knn", "logistic"]
    assert min(accuracy["top1"] for accuracy in results[0].values()) > 0.2
    other = evaluate(model, "digits", options=QUICK, policy="cifar", progress=False)
    assert other["accuracy"] != results[0]
    assert other["preprocessing"]["mean"] == POLICIES["cifar"].mean


def test_random_labels_give_chance(model, digits):
    """Expected 0.1 of 250 images: 4.5 deviations are 0.085."""
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    shuffled = TensorImages(digits.train.images, digits.train.labels[order])
    data = ImageData(shuffled, shuffled, digits.test, digits.classes)
    accuracy = evaluate(model, data, options=QUICK, progress=False)["accuracy"]
    for figures in accuracy.values():
        assert abs(figures["top1"] - 0.1) < 0.085
        assert abs(figures["top5"] - 0.5) < 0.14


@pytest.mark.parametrize("size", [32, 64, 128])
def test_published_files_are_evaluated(golden, tmp_path, size):
    write_folder(tmp_path / "data", train=6, test=4, sizes=((160, 150), (40, 48), (size, size)))
    options = EvaluationOptions(methods=("knn", "logistic"), k=3, workers=0)
    result = evaluate(
        golden / f"amdim_public_{size}.pth", "folder", data_dir=tmp_path / "data",
        options=options, out_dir=tmp_path / "out", progress=False,
    )  # fmt: skip
    assert result["test_images"] == 8
    assert result["preprocessing"]["size"] == size
    assert all(0 <= figures["top1"] <= 1 for figures in result["accuracy"].values())
    assert all(figures["top5"] == 1 for figures in result["accuracy"].values())


def test_transductive_statistics_are_those_of_a_plain_loop(model, digits, capsys, checkpoint):
    """One batch of 200 of the 250 test images, in the order of the seed."""
    options = replace(QUICK, methods=("stored",), transductive_bn=True, seed=4)
    result = evaluate(model, digits, options=options, progress=False)
    adapted = copy.deepcopy(model).train()
    index = torch.randperm(250, generator=torch.Generator().manual_seed(4))[:200]
    batch = TensorImages(digits.test.images[index], digits.test.labels[index])
    pixels = batch.images.float().div(255).sub(0.5).div(0.5).permute(0, 3, 1, 2)
    with torch.no_grad():
        adapted.evaluator(adapted.encoder(pixels).r1)
        linear = adapted.eval().evaluator(features_of(adapted, digits.test)).logits_linear
        plain = copy.deepcopy(model.evaluator).eval()(features_of(model, digits.test))
    expected = float((linear.argmax(1) == digits.test.labels).double().mean())
    assert result["accuracy"]["stored_linear"]["top1"] == pytest.approx(expected, abs=1e-9)
    assert result["transductive_bn"]
    assert not torch.equal(linear, plain.logits_linear)
    flags = ["--methods", "stored", "--transductive-bn", f"--out={checkpoint.parent / 'out'}"]
    assert main(["evaluate", str(checkpoint), *flags]) == 0
    assert "transductive: BatchNorm statistics were moved" in capsys.readouterr().out


def test_sheet_frames_right_and_wrong(digits):
    policy = Preprocessing.of(POLICIES["digits"])
    train = TensorImages(digits.train.images[:20], digits.train.labels[:20])
    test = TensorImages(digits.train.images[3:5], torch.tensor([int(train.labels[3]), 99]))
    features = torch.eye(20)
    pixels = neighbour_sheet(train, test, features, features[3:5], policy)
    step = 32 + 2 * GAP
    assert pixels.shape == (2 * step, 10 * step, 3)
    for row, color in enumerate((RIGHT, WRONG)):
        nearest = pixels[row * step : (row + 1) * step, step : 2 * step]
        assert nearest[0, 0].tolist() == list(color)
        assert torch.equal(nearest[GAP:-GAP, GAP:-GAP], train.images[3 + row])
        shown = pixels[row * step + GAP :, GAP:][:32, :32]
        assert torch.equal(shown, test.images[row])


def test_confusion_matrix_is_drawn(tmp_path):
    """Its cells hold the shares, whatever the classes are called."""
    counts = torch.tensor([[4, 0, 0], [0, 0, 2], [0, 0, 0]])
    drawn = draw_confusion(counts, ["$x", r"$\bad{$", "plain"], "knn")
    pixels = np.array(Image.open(io.BytesIO(drawn)).convert("RGB")).reshape(-1, 3)
    dark = np.array([8, 48, 107])  # the end of matplotlib's Blues
    share = (np.abs(pixels - dark.astype(int)).max(1) <= 2).sum() / len(pixels)
    other = draw_confusion(torch.full((3, 3), 2), ["a", "b", "c"], "knn")
    pixels = np.array(Image.open(io.BytesIO(other)).convert("RGB")).reshape(-1, 3)
    assert share > 0.05
    assert not (np.abs(pixels - dark.astype(int)).max(1) <= 2).any()
    wide = draw_confusion(torch.eye(60, dtype=torch.int64), [str(i) for i in range(60)], "knn")
    Image.open(io.BytesIO(wide)).verify()


def test_skipped_images_are_listed(checkpoint, tmp_path, capsys):
    write_folder(tmp_path / "data", train=20, test=8, sizes=((32, 32),))
    (tmp_path / "data" / "train" / "cat" / "zero.png").write_bytes(b"")
    flags = [f"--data-dir={tmp_path / 'data'}", "--data=folder", "--workers=0", "--methods", "knn"]
    out = tmp_path / "out"
    assert main(["evaluate", str(checkpoint), f"--out={out}", *flags]) == 2
    assert "zero.png is empty" in capsys.readouterr().err
    assert not out.exists()
    assert main(["evaluate", str(checkpoint), f"--out={out}", "--skip-bad", *flags]) == 0
    assert "skipped 1 bad images, listed in evaluation.json" in capsys.readouterr().out
    result = json.loads((out / "evaluation.json").read_text())
    assert [line.endswith("zero.png is empty") for line in result["skipped"]] == [True]
    assert result["train_images"] == 40


def test_names_that_are_not_utf8_cost_nothing(checkpoint, tmp_path):
    """Accuracies and pictures are there, and the folder's name is printed in any encoding."""
    names = [os.fsdecode(b"caf\xe9"), "\u732b"]
    write_folder(tmp_path / "data", train=20, test=4, classes=names, sizes=((32, 32),))
    out = os.fsdecode(b"out\xe9")
    flags = ["--data=folder", "--data-dir=data", "--workers=0", "--methods", "knn", f"--out={out}"]
    command = ["-m", "amdim_fast", "evaluate", checkpoint, *flags]
    variables = {"PYTHONIOENCODING": "ascii"}
    process = start(command, tmp_path, variables=variables, imported=())
    said, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "out\\udce9" in said
    result = json.loads((tmp_path / out / "evaluation.json").read_text())
    assert 0 <= result["accuracy"]["knn"]["top1"] <= 1
    assert {path.name for path in (tmp_path / out).iterdir()} == {
        "evaluation.json", "confusion.png", "neighbours.png",
    }  # fmt: skip


def test_a_picture_that_fails_costs_no_accuracy(checkpoint, tmp_path, capsys, monkeypatch):
    def failing(*_arguments):
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr("amdim_fast.evaluation.evaluate.draw_confusion", failing)
    out = tmp_path / "out"
    assert main(["evaluate", str(checkpoint), "--methods", "knn", f"--out={out}"]) == 0
    said = capsys.readouterr()
    sentence = (
        f"{out / 'confusion.png'} could not be drawn (no font at all); evaluation.json beside"
    )
    assert sentence in said.err
    assert "knn" in said.out
    assert {path.name for path in out.iterdir()} == {"evaluation.json", "neighbours.png"}


def test_as_a_process(checkpoint, tmp_path):
    write_folder(tmp_path / "data", train=20, test=8, sizes=((32, 32),))
    command = [
        "-m", "amdim_fast", "evaluate", checkpoint, "--data=folder",
        "--data-dir=data", "--out=out", "--knn-k=3", "--probe-epochs=3", "--workers=0",
    ]  # fmt: skip
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("linear", "mlp", "knn", "logistic", "test images", "top-1"):
        assert word in done.stdout
    for name in ("confusion", "neighbours"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            image.load()
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["provenance"] == {"recipe": "digits", "step": 7}
    assert result["options"]["schedule"]["epochs"] == 3
    again = run(command, tmp_path)
    assert again.returncode == 2
    assert again.stderr == "amdim-fast: out exists already; choose another name or move it away\n"


def test_stored_probes_find_their_classes_by_name(model, digits, tmp_path):
    """The order of the classes is the data set's own affair; other names are refused."""
    named = copy.deepcopy(model)
    named.evaluator.class_names = digits.classes
    with torch.no_grad():
        linear = copy.deepcopy(model.evaluator).eval()(features_of(model, digits.test))[1]
    expected = float((linear.argmax(1) == digits.test.labels).double().mean())
    other = ImageData(
        *(TensorImages(part.images, 9 - part.labels) for part in (digits.train,) * 2),
        TensorImages(digits.test.images, 9 - digits.test.labels),
        tuple(reversed(digits.classes)),
    )
    options = replace(QUICK, methods=("stored",))
    save_checkpoint(tmp_path / "named.pt", named)
    for given in (named, tmp_path / "named.pt"):
        for data in (digits, other):
            result = evaluate(given, data, options=options, policy="digits", progress=False)
            assert result["accuracy"]["stored_linear"]["top1"] == pytest.approx(expected, abs=1e-9)
    unnamed = evaluate(model, other, options=options, progress=False)
    assert unnamed["accuracy"]["stored_linear"]["top1"] != pytest.approx(expected, abs=1e-9)

    renamed = replace(digits, classes=("zero", *digits.classes[1:]))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared whole
        evaluate(named, renamed, options=options, progress=False)
    assert str(caught.value) == (
        "the classes of the data set are not those of the model's own probes: new 'zero', missing"
        " '0'; call the class folders what they were, or leave out the method 'stored'"
    )
    evaluate(named, renamed, options=replace(QUICK, methods=("knn",)), progress=False)
