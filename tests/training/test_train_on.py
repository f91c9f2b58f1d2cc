"""Runs that go on to another length, also past their end, and runs that begin with weights."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from amdim_fast import AMDIM, export_encoder, load_checkpoint, pretrain, save_checkpoint
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import LOADERS
from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.step import Training
from tests.training.tiny import SIXTY_STEPS, few_digits

# 400 digits, 8 steps an epoch; milestones at the steps 8 and 16.
LONG = replace(SIXTY_STEPS, steps=0, epochs=3, batch_size=50, checkpoint_every=3, keep_every=0)
SHORT = replace(LONG, epochs=1)
QUIET = {"name": "run", "progress": False}


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    data = few_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOADERS, "digits", lambda *_: data)
        patch.setitem(RECIPES, "digits", SHORT)
        yield


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The folder of a run of three epochs."""
    folder = tmp_path_factory.mktemp("long")
    pretrain(LONG, runs_dir=folder, **QUIET)
    return folder / "run"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("short")
    pretrain(SHORT, runs_dir=folder, **QUIET)
    return folder / "run"


@pytest.fixture
def run(short, tmp_path):
    """A copy of the short run."""
    return shutil.copytree(short, tmp_path / "run")


def final(folder):
    return read_checkpoint(folder / "checkpoint.pt")


def flat(value, place=""):
    if isinstance(value, dict):
        return {k: v for name in value for k, v in flat(value[name], f"{place}.{name}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), place)
    return {place: value.tolist() if isinstance(value, torch.Tensor) else value}


def records(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss_1t5" in record]


LEARNED = ("model", "optimizer", "generators", "random", "step", "recipe")


def test_past_the_end_is_as_if_it_had_been_so_long_from_the_beginning(long, run, capsys):
    assert final(run)["step"] == 8
    assert main(["pretrain", f"--resume={run}", "--epochs=3"]) == 0
    said = capsys.readouterr().err
    sentence = (
        "amdim-fast: resuming after step 8 to step 24; before, it was to step 8; its learning"
        " rate is that of a run which has had this length and these milestones from the beginning,"
        " 0.0001 at the next step\n"  # 0.2 of 5e-4
    )
    assert said.count(sentence) == 1
    found, expected = final(run), final(long)
    for part in LEARNED:
        assert flat(found[part]) == flat(expected[part]), part
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["step"], summary["steps"]) == (24, 24)
    assert json.loads((run / "config.json").read_text())["recipe"]["epochs"] == 3
    rates = {record["step"]: record["learning_rate"] for record in records(run)}
    assert rates.pop(1) == pytest.approx(1e-4, rel=1e-12)  # a fifth of the warm-up
    for step, rate in rates.items():
        decay = 0.2 ** sum(step > end for end in (8, 16))
        assert rate == pytest.approx(5e-4 * min(1, step / 5) * decay, rel=1e-12)
    epochs = {record["step"]: record["epoch"] for record in records(run)}
    assert (epochs[1], epochs[6], epochs[24]) == (1 / 8, 6 / 8, 3)
    # The log has what the longer run has, and the record at the end of the shorter one.
    steps = [record["step"] for record in records(long)]
    assert list(epochs) == sorted({*steps, 8})
    assert main(["pretrain", f"--resume={run}", "--log-every=9"]) == 0  # the new length stays
    assert final(run)["recipe"]["epochs"] == 3


def test_milestones_may_move_with_the_end(run, capsys):
    flags = ["--steps=9", "--milestones", "2"]
    assert main(["pretrain", f"--resume={run}", *flags]) == 0
    said = capsys.readouterr().err
    assert "with milestones at the epochs [2]; before, at [1, 2]; its learning rate is that" in said
    assert "these milestones from the beginning, 0.0005 at the next step\n" in said
    assert [record["learning_rate"] for record in records(run)][-2:] == [5e-4, 5e-4]
    changes = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {"step": 8, "steps": 9, "steps_before": 8} in changes
    assert {"step": 8, "milestones": [2], "milestones_before": [1, 2]} in changes


def test_killed_before_its_first_step_it_keeps_the_new_length(run, monkeypatch):
    def killed(_self, *_arguments):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "update", killed)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(replace(SHORT, epochs=2), resume=run, progress=False)
    assert pretrain(resume=run, progress=False)["step"] == 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps=7"], "steps is 7; it must be at least the 8 steps that the run has taken"),
        (
            ["--epochs=2", "--batch-size=400"],
            "batch_size is 400; it must be 50, as when",
        ),
        (["--recipe=digits", "--epochs=2", "--warmup-steps=6"], "warmup_steps is 6; it must be 5"),
        (["--epochs=2", "--init-from=x.pt"], "init_from is 'x.pt', but a resumed run has weights"),
    ],
)
def test_what_cannot_be_changed(run, capsys, flags, message):
    before = (run / "checkpoint.pt").read_bytes(), (run / "config.json").read_bytes()
    assert main(["pretrain", f"--resume={run}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert ((run / "checkpoint.pt").read_bytes(), (run / "config.json").read_bytes()) == before


def test_a_recipe_s_name_says_nothing_of_the_length(run, monkeypatch):
    monkeypatch.setitem(RECIPES, "digits", replace(SHORT, steps=600))
    assert main(["pretrain", f"--resume={run}", "--recipe=digits", "--no-progress"]) == 0
    assert final(run)["step"] == 8


def weights(folder, prefix):
    state = final(folder)["model"]
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def start(tmp_path, name, **options):
    """The folder of a run of no more than step 0, as it began."""
    folder = tmp_path / name

    def stop(_self, *_arguments):
        raise RuntimeError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "update", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            pretrain(runs_dir=tmp_path, name=name, progress=False, **options)
    assert final(folder)["step"] == 0
    return folder


@pytest.mark.parametrize("kind", ["checkpoint", "export"])
def test_a_run_begins_with_the_encoder_of_a_file(short, tmp_path, kind):
    file = short / "checkpoint.pt"
    if kind == "export":
        file = tmp_path / "export"
        export_encoder(short / "checkpoint.pt", file)
    fresh = start(tmp_path, "fresh", recipe=SHORT, seed=3)
    begun = start(tmp_path, "begun", recipe=SHORT, seed=3, init_from=file)
    assert flat(weights(begun, "encoder.")) == flat(weights(short, "encoder."))
    assert flat(weights(begun, "encoder.")) != flat(weights(fresh, "encoder."))
    for part in ("evaluator.",):
        assert flat(weights(begun, part)) == flat(weights(fresh, part))
    for part in ("optimizer", "generators", "random", "score"):
        assert flat(final(begun)[part]) == flat(final(fresh)[part])
    assert json.loads((begun / "config.json").read_text())["init_from"] == str(file)
    assert pretrain(resume=begun, progress=False)["step"] == 8
    assert final(begun)["init_from"] == str(file)


def test_components_come_too_where_both_have_them(tmp_path, capsys):
    torch.manual_seed(5)
    with_three = AMDIM(32, 4, 16, 1, components=3)
    save_checkpoint(tmp_path / "three.pt", with_three)
    save_checkpoint(tmp_path / "plain.pt", AMDIM(32, 4, 16, 1))
    recipe = replace(SHORT, mixture=3)
    begun = start(tmp_path, "begun", recipe=recipe, init_from=tmp_path / "three.pt")
    assert flat(weights(begun, "mixture.")) == flat(
        {f"mixture.{k}": v for k, v in with_three.mixture.state_dict().items()}
    )
    fresh = start(tmp_path, "fresh", recipe=recipe)
    plain = start(tmp_path, "plain", recipe=recipe, init_from=tmp_path / "plain.pt")
    assert flat(weights(plain, "mixture.")) == flat(weights(fresh, "mixture."))
    start(tmp_path, "dropped", recipe=SHORT, init_from=tmp_path / "three.pt")
    flags = ["--mixture=4", f"--init-from={tmp_path / 'three.pt'}", f"--runs-dir={tmp_path}"]
    assert main(["pretrain", *flags, "--name=four"]) == 2
    assert (
        "three.pt has 3 components and this run 4 (mixture.linear_2.weight is [48, 16], here"
        " [64, 16]; mixture.linear_2.bias is [48], here [64]); give --mixture as there"
    ) in capsys.readouterr().err
    assert not (tmp_path / "four").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            AMDIM(32, 8, 24, 1),
            "another encoder than this run: ndf is 8, here 4 (--ndf); n_rkhs is 24, here 16",
        ),
        (AMDIM(64, 4, 16, 1), "encoder_size is 64, here 32 (--policy or --size)"),
        (AMDIM(32, 4, 16, 1, use_bn=True), "use_bn is True, here False (--use-bn)"),
        (AMDIM(32, 4, 16, 2, in_channels=1), "n_depth is 2, here 1 (--depth); in_channels is 1"),
        (None, "weights.pt does not exist; give a checkpoint file or the folder of an export"),
    ],
)
def test_an_encoder_that_differs_is_named(tmp_path, capsys, other, message):
    file = tmp_path / "weights.pt"
    if other is not None:
        save_checkpoint(file, other)
    flags = [f"--init-from={file}", f"--runs-dir={tmp_path}", "--name=run"]
    assert main(["pretrain", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_it_began_with_is_said_and_its_baseline_named(short, tmp_path, capsys):
    model = load_checkpoint(short / "checkpoint.pt")
    save_checkpoint(tmp_path / "weights.pt", model)
    flags = [f"--init-from={tmp_path / 'weights.pt'}", f"--runs-dir={tmp_path}", "--name=run"]
    assert main(["pretrain", *flags, "--steps=1", "--baselines", "--probe-epochs=1"]) == 0
    said = capsys.readouterr()
    assert f"weights: the encoder's of {tmp_path / 'weights.pt'}\n" in said.err
    assert "logistic regression, initial weights" in said.out
    assert "random weights" not in said.out
