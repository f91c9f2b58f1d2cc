"""The folder of a run: one process at a time, and nothing of a run that never began."""

import os
import platform
import resource
import signal

import pytest

from amdim_fast import pretrain
from amdim_fast.cli.main import main
from amdim_fast.data.datasets import LOADERS
from amdim_fast.training import checkpoints
from amdim_fast.training.folder import locked
from amdim_fast.training.recipes import RECIPES
from tests.processes import start
from tests.training import tiny
from tests.training.tiny import TINY, few_digits, wait_for_step

SMALL = ("--steps=2", "--no-baselines")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(LOADERS, "digits", few_digits)
    monkeypatch.setitem(RECIPES, "digits", TINY)


def error_of(capsys, *arguments):
    assert main(["pretrain", *map(str, arguments)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_is_trained_by_one_process(tmp_path, capsys):
    """The second is told who is the first; the lock of a killed one is taken over."""
    folder = tmp_path / "run"
    first = start([tiny.__file__, "--name=run", "--runs-dir=."], tmp_path)
    assert wait_for_step(first, folder / "log.jsonl", 3)
    os.kill(first.pid, signal.SIGSTOP)
    before = (folder / "log.jsonl").read_bytes()
    planted = folder / ".checkpoint.pt.0123abcd.tmp"  # as if it were writing it
    planted.touch()
    expected = (
        f"amdim-fast: the run {folder} is being trained by process {first.pid} on"
        f" {platform.node()}; wait for it, or stop it, and resume then"
    )
    assert error_of(capsys, f"--resume={folder}") == expected
    assert (folder / "log.jsonl").read_bytes() == before
    assert planted.exists()
    first.kill()
    first.communicate()
    assert (folder / ".lock").exists()
    again = start([tiny.__file__, "--resume=run"], tmp_path)
    _, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert not (folder / ".lock").exists()


def test_a_lock_ends_with_its_context(tmp_path):
    path = tmp_path / ".lock"
    with locked(tmp_path):
        content = path.read_text()
        with (
            pytest.raises(BlockingIOError, match=rf"by process {os.getpid()} on "),
            locked(tmp_path),
        ):
            pass
        assert path.read_text() == content
    assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        pass


def test_a_run_that_could_not_begin_leaves_nothing(tmp_path, monkeypatch, capsys):
    """The disk takes the configuration and not the checkpoint of step 0."""
    save = checkpoints.save_checkpoint

    def on_a_full_disk(path, model, **extra):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            return save(path, model, **extra)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    flags = [*SMALL, "--name=run", f"--runs-dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", on_a_full_disk)
        error = error_of(capsys, *flags)
    assert error == (
        f"amdim-fast: the checkpoint of step 0 could not be written to {tmp_path / 'run'} (File too"
        " large); there is no earlier one; make room and start the run anew"
    )
    assert not list(tmp_path.iterdir())
    assert main(["pretrain", *flags]) == 0


def test_a_run_killed_before_its_first_checkpoint_is_begun_afresh(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = [*SMALL, "--name=run", f"--runs-dir={tmp_path}"]
    pretrain(TINY, name="run", runs_dir=tmp_path, progress=False)
    for path in folder.glob("*.p*"):
        path.unlink()
    (folder / "summary.json").unlink()
    (folder / ".checkpoint.pt.0123abcd.tmp").touch()
    with locked(folder):
        assert "is being trained by process" in error_of(capsys, *flags)
    (folder / "notes.txt").write_text("kept")
    error = error_of(capsys, *flags)
    assert error.endswith("exists already; choose another --name or move it away")
    (folder / "notes.txt").unlink()
    assert main(["pretrain", *flags]) == 0
    assert len((folder / "log.jsonl").read_text().splitlines()) == 2
    assert not list(folder.glob(".*"))
    error = error_of(capsys, *flags)
    assert error.endswith(f"choose another --name or move it away, or go on with --resume {folder}")
