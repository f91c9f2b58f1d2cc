"""Runs that are stopped, killed or fail, and go on to the same bits."""

import json
import os
import random
import resource
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from amdim_fast import pretrain
from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import LOADERS
from amdim_fast.training import checkpoints as run_checkpoints
from amdim_fast.training import randomness
from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.step import Training
from tests.processes import start
from tests.training import tiny
from tests.training.tiny import SIXTY_STEPS, few_digits, wait_for_step

SHORT = replace(SIXTY_STEPS, steps=30, checkpoint_every=7, keep_every=10)
QUIET = {"name": "run", "progress": False}


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOADERS, "digits", few_digits)
        patch.setitem(RECIPES, "digits", SIXTY_STEPS)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of 30 steps, 25 an epoch, that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    pretrain(SHORT, runs_dir=folder, **QUIET)
    return folder / "run"


def final(folder):
    return read_checkpoint(folder / "checkpoint.pt")


def assert_same(found, expected, where=""):
    """Every tensor and value, seconds excepted."""
    assert type(found) is type(expected), where
    if isinstance(found, dict):
        assert found.keys() == expected.keys(), where
        for key in found.keys() - {"seconds"}:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(found, torch.Tensor):
        assert found.dtype == expected.dtype, where
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def stop_after(monkeypatch, step, number=signal.SIGTERM):
    """The signal comes in the midst of a step."""
    update = Training.update

    def stopped(self, *arguments):
        if self.step + 1 == step:
            os.kill(os.getpid(), number)
        return update(self, *arguments)

    monkeypatch.setattr(Training, "update", stopped)


def losses(folder):
    """Of each record; accuracies are those of all steps since the one before."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    names = ("step", "loss_1t5", "probe_linear", "accuracy_linear", "accuracy_mlp")
    return [tuple(map(json.loads(line).get, names)) for line in lines]


@pytest.mark.parametrize("steps", [[1], [7], [12, 13], [24, 25, 26], [30]])
def test_stopped_and_resumed_ends_in_the_same_bits(whole, tmp_path, monkeypatch, steps):
    for number, step in enumerate(steps):
        with monkeypatch.context() as patch:
            stop_after(patch, step, signal.SIGINT if number else signal.SIGTERM)
            options = {"resume": tmp_path / "run"} if number else {"runs_dir": tmp_path, **QUIET}
            summary = pretrain(None if number else SHORT, **{"progress": False, **options})
        assert summary["interrupted"]
        assert summary["step"] == step
        assert final(tmp_path / "run")["step"] == step
        random.random(), np.random.rand(), torch.rand(1)
    done = pretrain(resume=tmp_path / "run", progress=False)
    assert not done["interrupted"]
    assert done["step"] == 30
    assert_same(final(tmp_path / "run"), final(whole))
    assert losses(tmp_path / "run") == losses(whole)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("change", "prefix"),
    [({"mixture": 3}, "mixture."), ({"micro_batch": 7, "checkpoint_blocks": True}, "encoder.")],
)
def test_other_recipes_go_on_in_the_same_bits(tmp_path, monkeypatch, change, prefix):
    recipe = replace(SHORT, steps=12, **change)
    pretrain(recipe, runs_dir=tmp_path / "whole", **QUIET)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        pretrain(recipe, runs_dir=tmp_path, **QUIET)
    assert final(tmp_path / "run")["step"] == 5
    pretrain(resume=tmp_path / "run", progress=False)
    found = final(tmp_path / "run")
    assert_same(found, final(tmp_path / "whole" / "run"))
    assert any(name.startswith(prefix) for name in found["model"])


def test_a_forgotten_generator_is_noticed(whole, tmp_path, monkeypatch):
    """The comparison can fail: without the state of the views' generator it does."""
    with monkeypatch.context() as patch:
        stop_after(patch, 12)
        pretrain(SHORT, runs_dir=tmp_path, **QUIET)
    load = Training.load_state

    def forgetful(self, state):
        before = self._view_generator.get_state()
        load(self, state)
        self._view_generator.set_state(before)

    monkeypatch.setattr(Training, "load_state", forgetful)
    pretrain(resume=tmp_path / "run", progress=False)
    found, expected = final(tmp_path / "run")["model"], final(whole)["model"]
    assert not all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_generator_is_restored():
    randomness.seed_everything(3)
    states = randomness.random_states()
    first = torch.rand(2), np.random.rand(2), random.random()
    randomness.restore_random_states(states)
    again = torch.rand(2), np.random.rand(2), random.random()
    assert torch.equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[2] == again[2]


def test_last_best_and_kept_checkpoints(whole):
    names = {path.name for path in whole.glob("*.pt")}
    kept = {f"checkpoint-{step:08d}.pt" for step in (10, 20, 30)}
    assert names == {"checkpoint.pt", "checkpoint-best.pt", *kept}
    for step in (10, 20, 30):
        assert read_checkpoint(whole / f"checkpoint-{step:08d}.pt")["step"] == step
    best = read_checkpoint(whole / "checkpoint-best.pt")
    assert best["score"] == final(whole)["score"]
    assert best["step"] == best["score"]["step"]
    assert best["step"] in (7, 14, 21, 28, 30)


def test_a_kill_between_the_names_of_a_checkpoint_is_made_good(whole, tmp_path):
    """Step 30 was the latest, and had not got its kept name yet; what others left stays or goes."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "checkpoint-00000030.pt").unlink()
    (folder / ".evaluation.0123abcd.tmp").mkdir()
    (folder / ".evaluation.0123abcd.tmp" / "evaluation.json").touch()
    (folder / ".my notes.tmp").touch()
    pretrain(resume=folder, progress=False)
    assert_same(read_checkpoint(folder / "checkpoint-00000030.pt"), final(whole))
    assert [path.name for path in folder.glob(".*")] == [".my notes.tmp"]


def start_run(folder, *arguments):
    return start([tiny.__file__, *arguments], folder)


def kill_and_resume(tmp_path, expected, kills, seed):
    """Kill at random moments; every checkpoint that is found can be read."""
    rng = random.Random(seed)
    folder = tmp_path / "run"
    for step in sorted(rng.randrange(1, 58) for _ in range(kills)):
        arguments = ["--resume=run"] if folder.exists() else ["--name=run", "--runs-dir=."]
        process = start_run(tmp_path, *arguments)
        wait_for_step(process, folder / "log.jsonl", step)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
        for path in folder.glob("*.pt"):
            assert read_checkpoint(path)["step"] <= 60
    process = start_run(tmp_path, "--resume=run")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert_same(final(folder), expected)
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The last checkpoint of the tiny run, uninterrupted, as a process."""
    folder = tmp_path_factory.mktemp("expected")
    process = start_run(folder, "--name=run", "--runs-dir=.")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return final(folder / "run")


def test_killed_at_random_steps(tmp_path, expected):
    kill_and_resume(tmp_path, expected, kills=4, seed=0)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path, expected):
    kill_and_resume(tmp_path, expected, kills=20, seed=1)


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM] * 2])
def test_signals_end_a_process_in_order(tmp_path, expected, numbers):
    process = start_run(tmp_path, "--name=run", "--runs-dir=.")
    wait_for_step(process, tmp_path / "run" / "log.jsonl", 9)
    for number in numbers:
        process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    step = final(tmp_path / "run")["step"]
    command = "amdim-fast pretrain --resume run"
    assert output == f"stopped after step {step} of 60; continue with: {command}\n"
    assert "Traceback" not in errors
    process = start_run(tmp_path, "--resume=run")
    process.communicate(timeout=120)
    assert_same(final(tmp_path / "run"), expected)


def test_a_full_disk_loses_nothing(whole, tmp_path, monkeypatch, capsys):
    """Files cannot grow beyond a few kilobytes from step 14 on."""
    save = run_checkpoints.save_checkpoint

    def on_a_full_disk(path, model, **extra):
        if extra["step"] < 14:
            return save(path, model, **extra)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            return save(path, model, **extra)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(run_checkpoints, "save_checkpoint", on_a_full_disk)
        patch.setitem(RECIPES, "digits", SHORT)
        assert main(["pretrain", "--name=run", f"--runs-dir={tmp_path}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    folder = tmp_path / "run"
    assert f"the checkpoint of step 14 could not be written to {folder} (File too large)" in error
    assert f"last good checkpoint is {folder / 'checkpoint.pt'}, of step 10; make room" in error
    assert final(folder)["step"] == 10
    assert not list(folder.glob(".*.tmp"))
    pretrain(resume=folder, progress=False)
    assert_same(final(folder), final(whole))


def resume_error(capsys, *arguments):
    assert main(["pretrain", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size=8"], "batch_size is 8; it must be 16, as when the run"),
        (["--seed=4"], "seed is 4; it must be 0, as when the run"),
        (["--precision=bfloat16", "--depth=3"], "depth is 3; it must be 1; precision is 'bf"),
        (["--recipe=cifar10"], "name is 'cifar10'; it must be 'digits'"),
        (["--name=other"], "name is 'other', but a resumed run keeps its own; leave it out"),
    ],
)
def test_options_that_disagree_with_the_run(whole, capsys, flags, message):
    before = (whole / "checkpoint.pt").read_bytes()
    assert message in resume_error(capsys, f"--resume={whole}", *flags)
    assert (whole / "checkpoint.pt").read_bytes() == before


def test_bookkeeping_may_differ(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        pretrain(SHORT, runs_dir=tmp_path, **QUIET)
    pretrain(replace(SHORT, log_every=2, keep_every=0), resume=tmp_path / "run", progress=False)
    assert [step for step, *_ in losses(tmp_path / "run")][:4] == [1, 3, 6, 8]


@pytest.mark.parametrize("recorded", ["missing", None, False, True])
def test_a_run_goes_on_as_a_cuda_graph_or_not(whole, tmp_path, capsys, recorded):
    """Checkpoints of runs before the field, before it was left open, and of today."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    contents = read_checkpoint(folder / "checkpoint-00000020.pt")
    assert contents["recipe"].pop("cuda_graph") is None
    if recorded != "missing":
        contents["recipe"]["cuda_graph"] = recorded
    torch.save(contents, folder / "checkpoint.pt")
    if recorded is True:  # it began on a GPU
        message = "the device is cpu; it must be a CUDA device: turn it off (--no-cuda-graph)"
        assert message in resume_error(capsys, f"--resume={folder}")
        assert "--no-cuda-graph" in resume_error(capsys, f"--resume={folder}", "--cuda-graph")
    elif recorded is None:
        assert main(["pretrain", f"--resume={folder}"]) == 0
        found = final(folder)
        assert found["recipe"]["cuda_graph"] is None
        assert_same(found, final(whole))
        return
    assert main(["pretrain", f"--resume={folder}", "--no-cuda-graph"]) == 0
    assert "; execution eager\n" in capsys.readouterr().err
    found, expected = final(folder), final(whole)
    assert found["recipe"]["cuda_graph"] is False
    assert_same(found["model"], expected["model"])
    assert_same(found["optimizer"], expected["optimizer"])


def as_if_on_a_gpu(whole, folder):
    """A copy of a run as a GPU would have left it after step 10, with its generator's state."""
    shutil.copytree(whole, folder)
    shutil.copy(folder / "checkpoint-00000010.pt", folder / "checkpoint.pt")
    contents = final(folder)
    contents |= {"device": "cuda:7"}
    contents["generators"]["locations"] = torch.zeros(16, dtype=torch.uint8)
    torch.save(contents, folder / "checkpoint.pt")


def test_a_run_keeps_its_device_unless_another_is_named(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    as_if_on_a_gpu(whole, folder)
    before = (folder / "checkpoint.pt").read_bytes()
    message = f"the run {folder} is on cuda:7, which is not here; name another with --device"
    assert message in resume_error(capsys, f"--resume={folder}")
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert main(["pretrain", f"--resume={folder}", "--device=cpu"]) == 0
    said = capsys.readouterr().err
    assert "resuming after step 10 on cpu; before, it was on cuda:7\n" in said
    found, expected = final(folder), final(whole)
    assert (found["step"], found["device"]) == (30, "cpu")
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert {"step": 10, "device": "cpu", "device_before": "cuda:7"} in map(json.loads, lines)
    assert torch.equal(found["generators"]["views"], expected["generators"]["views"])
    assert not torch.equal(found["generators"]["locations"], expected["generators"]["locations"])


def test_what_cannot_be_resumed(whole, tmp_path, capsys, monkeypatch):
    missing = tmp_path / "missing"
    assert f"{missing} does not exist" in resume_error(capsys, f"--resume={missing}")
    (tmp_path / "empty").mkdir()
    assert "has no checkpoint.pt" in resume_error(capsys, f"--resume={tmp_path / 'empty'}")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "checkpoint.pt").write_bytes((whole / "checkpoint.pt").read_bytes()[:3000])
    assert "truncated" in resume_error(capsys, f"--resume={damaged}")
    fewer = few_digits()
    monkeypatch.setitem(LOADERS, "digits", lambda *_: replace(fewer, train=fewer.test))
    message = "100 training images of 10 classes, but it had 400 of 10 when the run began"
    assert message in resume_error(capsys, f"--resume={whole}")


def test_a_finished_run_is_summed_up_again(whole):
    before = final(whole)
    summary = pretrain(resume=whole, progress=False)
    assert summary["step"] == summary["steps"] == 30
    assert_same(final(whole), before)
