"""The main job on a few steps, its files, and what it says to wrong input."""

import json
import math
import re
import time
from dataclasses import replace

import pytest
import torch

from amdim_fast import load_checkpoint, pretrain
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import LOADERS, ImageData, load_digits
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.evaluation.linear_probe import linear_probe
from amdim_fast.training.meter import Clock, progress_of
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.step import LOSS_TERMS, build_model, uses_bfloat16
from tests.training.tiny import SMALL, SMALL_FLAGS, few_digits

pytestmark = pytest.mark.usefixtures("few_digits_loaded")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return pretrain(SMALL, name="one", runs_dir=folder, log_every=2, progress=False), folder / "one"


def test_files_of_a_run(run):
    summary, folder = run
    expected = {"config.json", "log.jsonl", "curves.png", "summary.json"}
    expected |= {"checkpoint.pt", "checkpoint-best.pt"}
    assert {path.name for path in folder.iterdir()} == expected
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert json.loads((folder / "config.json").read_text())["recipe"]["ndf"] == 4
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 4]
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    model = load_checkpoint(folder / "checkpoint.pt")
    assert model.hyperparams["n_rkhs"] == 16


def test_same_seed_same_weights(run, tmp_path):
    _, folder = run
    recipe = replace(SMALL, baselines=False)
    pretrain(recipe, name="two", runs_dir=tmp_path, log_every=1, progress=False)
    pretrain(recipe, name="three", runs_dir=tmp_path, seed=1, progress=False)
    weights = [
        load_checkpoint(path / "checkpoint.pt").state_dict()
        for path in (folder, tmp_path / "two", tmp_path / "three")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


def test_digits_are_split_by_class():
    data = load_digits()
    assert data.train.images.shape == (4000, 32, 32, 3)
    assert data.test.images.shape == (1000, 32, 32, 3)
    assert torch.equal(data.test.labels.bincount(), torch.full((10,), 100))
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.max() == 255


def test_schedule():
    recipe = Recipe(name="x", warmup_steps=4, milestones=(2, 4))
    factors = [recipe.rate_factor(step, 5) for step in (0, 1, 3, 4, 9, 10, 19, 20)]
    assert factors == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0, 0.2, 0.2, 0.04])


def test_linear_probe_separates_what_is_separable():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    features = centres[labels] + torch.randn(300, 2, generator=generator)
    accuracy = linear_probe(features[:200], labels[:200], features[200:], labels[200:])
    assert accuracy > 0.97
    shuffled = labels[torch.randperm(300, generator=generator)]
    assert linear_probe(features[:200], shuffled[:200], features[200:], shuffled[200:]) < 0.6
    assert linear_probe(features[:200], labels[:200], features[200:], labels[200:]) == accuracy


def test_command_prints_the_table(tmp_path, capfd):
    assert main(["pretrain", *SMALL_FLAGS, "--name=x", f"--runs-dir={tmp_path}"]) == 0
    captured = capfd.readouterr()
    for what in ("raw pixels", "random weights", "pre-trained"):
        assert f"logistic regression, {what}" in captured.out
    for line in ("training time", "peak memory", str(tmp_path / "x")):
        assert line in captured.out
    assert "images/s" in captured.err


def test_what_runs_a_step_is_said_first_and_kept(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = [*SMALL_FLAGS, "--precision=float32", "--no-baselines", f"--runs-dir={tmp_path}"]
    assert main(["pretrain", *flags, "--name=x", "--device=cpu"]) == 0
    first = capfd.readouterr().err.splitlines()[0]
    facts = {"device": "cpu", "precision": "float32", "loss": "torch", "views": "compiled"}
    facts |= {"encoder": "torch", "execution": "eager"}
    assert first == "; ".join(f"{name} {value}" for name, value in facts.items())
    assert json.loads((tmp_path / "x" / "config.json").read_text())["execution"] == facts
    pretrain(replace(SMALL, baselines=False), name="y", runs_dir=tmp_path, progress=False)
    assert capfd.readouterr().err == ""


def test_a_run_without_its_labels(tmp_path, capfd):
    """The best checkpoint is by loss, there are no probes, and so it stays after a resume."""
    flags = [*SMALL_FLAGS, "--no-baselines", f"--runs-dir={tmp_path}", "--name=x", "--no-labels"]
    assert main(["pretrain", *flags]) == 0
    second = capfd.readouterr().err.splitlines()[1]
    assert second == "data: 400 training images without labels; no test images"
    assert main(["pretrain", f"--resume={tmp_path / 'x'}"]) == 0
    contents = read_checkpoint(tmp_path / "x" / "checkpoint.pt")
    assert contents["data"] == {"images": 400, "classes": 0}
    assert contents["score"]["value"] < 0
    assert not any(name.startswith("evaluator") for name in contents["model"])


def test_existing_run_is_left_alone(tmp_path, capsys):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "precious").write_text("kept")
    assert main(["pretrain", *SMALL_FLAGS, "--name=x", f"--runs-dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "run folder" in error
    assert "exists already; choose another --name" in error
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["precious"]


def test_unwritable_runs_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    flags = [*SMALL_FLAGS, "--name=x", f"--runs-dir={tmp_path / 'file'}"]
    assert main(["pretrain", *flags]) == 2
    error = capsys.readouterr().err
    assert "cannot be created" in error
    assert "choose another --runs-dir" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size=5000"], "batch_size is 5000; it must be at most 400, the number of"),
        (["--batch-size=1"], "batch_size is 1; it must be a whole number, 2 or more"),
        (["--steps=0"], "steps is 0 and epochs is 0; one of them must be 1 or more"),
        (["--epochs=-1"], "epochs is -1; it must be a whole number, 0 or more"),
        (["--precision=half"], "precision is 'half'; it must be one of auto, float32, bfloat16"),
        (["--clip-grad-norm=inf"], "clip_grad_norm is inf; it must be a finite number, 0 or more"),
        (["--milestones", "0"], "milestones are (0,); each must be an epoch, 1 or more"),
        (["--checkpoint-every=0"], "checkpoint_every is 0; it must be a whole number, 1 or more"),
        (["--learning-rate=-1"], "learning_rate is -1.0; it must be a finite number above 0"),
        (["--tclip=nan"], "tclip is nan; it must be a finite number above 0"),
        (["--policy=none"], "policy is 'none'; it must be one of digits, cifar"),
        (["--data=none"], "data is 'none'; it must be one of digits"),
        (["--log-every=0"], "log_every is 0; it must be a whole number, 1 or more"),
        (["--device=nowhere"], "device is 'nowhere'; it must be cpu or cuda"),
        (
            ["--seed=18446744073709551616"],
            "seed is 18446744073709551616; it must be a whole number f",
        ),
        (["--timeout=nan"], "timeout is nan; it must be a number of seconds above 0, at most 1,0"),
        (["--timeout=inf"], "timeout is inf; it must be a number of seconds above 0, at most 1,0"),
        (["--timeout=0"], "timeout is 0.0; it must be a number of seconds above 0"),
        (["--workers=99999"], "workers is 99999; it must be a whole number from 0 to 1024"),
        (["--seed=-1"], "seed is -1; it must be a whole number from 0 to 18446744073709551615"),
    ],
)
def test_bad_options(tmp_path, capsys, flags, message):
    assert main(["pretrain", *flags, "--name=x", f"--runs-dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_not_finite_loss_names_the_last_good_checkpoint(tmp_path, capsys):
    flags = ["--ndf=4", "--n-rkhs=16", "--depth=1", "--batch-size=16", "--steps=30",
             "--learning-rate=1e20", "--warmup-steps=0", "--log-every=1"]  # fmt: skip
    assert main(["pretrain", *flags, "--name=x", f"--runs-dir={tmp_path}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"(loss_\w+|lgt_reg|probe_\w+) is (nan|inf) at step [2-9];", error)
    path = tmp_path / "x" / "checkpoint.pt"
    assert f"the last good checkpoint is {path}, of step 0; a lower --learning-rate" in error
    assert read_checkpoint(path)["step"] == 0


def test_interrupt_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("amdim_fast.cli.pretrain.pretrain", interrupted)
    assert main(["pretrain"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_log_has_terms_probes_and_shares(run):
    records = [json.loads(line) for line in (run[1] / "log.jsonl").read_text().splitlines()]
    terms = {"loss_1t5", "loss_1t7", "loss_5t5", "lgt_reg", "probe_mlp", "probe_linear"}
    speed = {"images_per_second", "data_wait_share", "views_share", "seconds"}
    place = {"step", "epoch", "learning_rate"}
    for record in records:
        assert record.keys() == {*place, *terms, "accuracy_mlp", "accuracy_linear", *speed}
        assert record["epoch"] == record["step"] / 25  # 400 digits, 16 at a time
        assert record["learning_rate"] == 5e-4 * min(1, record["step"] / 2)
        assert 0 <= record["data_wait_share"] + record["views_share"] <= 1
        assert 0 <= record["accuracy_linear"] <= 1


class Hands:
    """A clock that the test moves on."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("amdim_fast.training.meter.time.perf_counter", lambda: self.now)


def test_shares_are_of_the_time_since_the_last_record(monkeypatch):
    hands = Hands(monkeypatch)
    clock = Clock(seconds=7.0, step=10, device=torch.device("cpu"))
    for _ in range(3):
        for name, seconds in (("waited", 0.5), ("viewing", 0.25)):
            with clock.span(name):
                hands.now += seconds
        hands.now += 1.25
    with clock.paused():
        hands.now += 40
    assert clock.record(13, batch_size=4) == {
        "images_per_second": 2.0,
        "data_wait_share": 0.25,
        "views_share": 0.125,
        "seconds": 53.0,
    }
    with clock.span("waited"):
        hands.now += 1
    record = clock.record(14, batch_size=4)
    assert (record["data_wait_share"], record["views_share"]) == (1.0, 0.0)
    terms = dict.fromkeys(LOSS_TERMS, 0.5)
    shown = progress_of({**terms, "images_per_second": 2.4, "data_wait_share": 0.25} | {
        "views_share": 0.126})  # fmt: skip
    assert shown == {"loss": "2.000", "images/s": "2", "waiting": "25%", "views": "13%"}


@pytest.mark.gpu
@pytest.mark.parametrize(("busy", "low", "high"), [(False, 0.3, 0.45), (True, 0.0, 0.02)])
def test_on_a_gpu_only_an_idle_device_waits(busy, low, high):
    """The host waits 0.3 s for data; the device has work of a second before it, or none."""
    rate = torch.cuda.get_device_properties(0).clock_rate * 1000
    torch.cuda._sleep(1000)
    torch.cuda.synchronize()
    clock = Clock(0.0, 0, torch.device("cuda"))
    started = time.perf_counter()
    if busy:
        torch.cuda._sleep(rate)
    with clock.span("waited"):
        time.sleep(0.3)
    torch.cuda.synchronize()
    share = clock.record(1, 4)["data_wait_share"]
    assert low <= share * (time.perf_counter() - started) <= high


def test_online_probes_learn(tmp_path):
    recipe = replace(SMALL, steps=120, batch_size=64, baselines=False, learning_rate=5e-3)
    pretrain(recipe, name="x", runs_dir=tmp_path, log_every=20, progress=False)
    lines = (tmp_path / "x" / "log.jsonl").read_text().splitlines()
    accuracies = [json.loads(line)["accuracy_linear"] for line in lines]
    assert accuracies[0] < 0.25
    assert accuracies[-1] > 0.3


def test_unlabeled_images_need_no_probes(tmp_path, monkeypatch):
    data = few_digits()
    blank = ImageData(TensorImages(data.train.images), None, None, ())
    monkeypatch.setitem(LOADERS, "digits", lambda *_: blank)
    recipe = replace(SMALL, baselines=False, checkpoint_every=2)
    summary = pretrain(recipe, name="x", runs_dir=tmp_path, progress=False)
    assert "accuracy_pretrained" not in summary
    contents = read_checkpoint(tmp_path / "x" / "checkpoint-best.pt")
    assert contents["score"]["value"] < 0  # the negative loss
    assert load_checkpoint(tmp_path / "x" / "checkpoint.pt").evaluator is None
    with pytest.raises(ValueError, match="baselines is on, but the data set 'digits' has no lab"):
        pretrain(SMALL, name="y", runs_dir=tmp_path, progress=False)


@pytest.mark.parametrize(
    "change",
    [{"clip_grad_norm": 1e-3}, {"precision": "bfloat16"}, {"deterministic": True}],
)
def test_options_of_the_step_run(run, tmp_path, change):
    recipe = replace(SMALL, baselines=False, **change)
    pretrain(recipe, name="x", runs_dir=tmp_path, progress=False)
    found = load_checkpoint(tmp_path / "x" / "checkpoint.pt").encoder.state_dict()
    plain = load_checkpoint(run[1] / "checkpoint.pt").encoder.state_dict()
    same = all(torch.equal(found[name], plain[name]) for name in plain)
    assert same == ("deterministic" in change)
    assert all(value.isfinite().all() for value in found.values())
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("feature", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_automatic_precision(monkeypatch, feature):
    automatic, cpu, cuda = RECIPES["digits"], torch.device("cpu"), torch.device("cuda")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert not uses_bfloat16(automatic, cpu)
    assert uses_bfloat16(automatic, cuda)
    assert uses_bfloat16(replace(automatic, precision="bfloat16"), cpu)
    monkeypatch.setattr(torch.cpu, feature, lambda: True)
    assert uses_bfloat16(automatic, cpu)
    assert not uses_bfloat16(replace(automatic, precision="float32"), cpu)


def test_components_are_trained_logged_and_saved(tmp_path):
    recipe = replace(SMALL, mixture=3, baselines=False, log_every=1)
    summary = pretrain(recipe, name="whole", runs_dir=tmp_path, progress=False)
    records = [json.loads(line) for line in open_lines(tmp_path / "whole" / "log.jsonl")]
    steps = [record for record in records if "posterior_entropy" in record]
    assert len(steps) == recipe.steps
    assert all(0 <= step["posterior_entropy"] <= math.log(3) + 1e-5 for step in steps)
    assert all(0 <= step["usage_entropy"] <= math.log(3) + 1e-5 for step in steps)
    model = load_checkpoint(f"{summary['folder']}/checkpoint.pt")
    assert model.hyperparams["components"] == 3
    torch.manual_seed(0)
    start = build_model(recipe, 10).state_dict()
    for name, value in model.state_dict().items():
        if name.startswith("mixture."):
            assert not torch.equal(value, start[name]), name


def open_lines(path):
    return path.read_text().splitlines()
