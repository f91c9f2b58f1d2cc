"""What is said to a run whose checkpoint, configuration or log has been changed."""

from dataclasses import replace

import pytest
import torch

from amdim_fast import CheckpointError, pretrain
from amdim_fast.data.datasets import LOADERS
from amdim_fast.training.log import RunLog, read_config
from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.resume import read_run
from tests.training.tiny import SIXTY_STEPS, few_digits


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The folder of a run of two steps."""
    monkeypatch.setitem(LOADERS, "digits", few_digits)
    monkeypatch.setitem(RECIPES, "digits", SIXTY_STEPS)
    recipe = replace(SIXTY_STEPS, steps=2, checkpoint_every=1, log_every=1)
    pretrain(recipe, runs_dir=tmp_path, name="run", progress=False)
    return tmp_path / "run"


def refused(error, function, *arguments, **options):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_from_another_folder(monkeypatch, tmp_path):
    """Relative data that is not here is looked for where the run began; what is here wins."""
    found = []
    monkeypatch.setitem(LOADERS, "digits", lambda root, *_: found.append(root) or few_digits())
    monkeypatch.setitem(RECIPES, "digits", SIXTY_STEPS)
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    pretrain(replace(SIXTY_STEPS, steps=1), "images", runs_dir=".", name="run", progress=False)
    monkeypatch.chdir(tmp_path / "b")
    resumed = {"resume": "../a/run", "progress": False}
    pretrain(**resumed)
    (tmp_path / "b" / "images").mkdir()
    pretrain(**resumed)
    pretrain(data_dir="other", **resumed)
    (tmp_path / "a" / "images").rmdir()
    (tmp_path / "b" / "images").rmdir()
    pretrain(**resumed)  # missing in both: named where it was
    assert [str(root) for root in found] == [
        "images",
        str(tmp_path / "a" / "images"),
        "images",
        "other",
        str(tmp_path / "a" / "images"),
    ]


def test_files_that_were_changed(run):
    """One run for all three: the log, the configuration, then the checkpoint."""
    log = run / "log.jsonl"
    first, *rest = log.read_bytes().splitlines(keepends=True)
    for line in (b"{}", b"[]", b"1", b'{"step": "1"}', b'{"step": true}', b"\xff", b"[" * 100_000):
        log.write_bytes(b"".join([first, line, b"\n", *rest]))
        found = refused(ValueError, RunLog, run, {}, resume_step=2)
        assert found == f"line 2 of {log} is not a record with a step; remove it to resume"
    log.write_bytes(first + rest[0][:9])  # a kill cut it short
    with RunLog(run, {}, resume_step=2) as again:
        assert [record["step"] for record in again.records] == [1]

    config = run / "config.json"
    whole = config.read_bytes()
    for content in (b"", b"\xff", b"[]", b"{}", b'{"data_dir": 1}', b"[" * 100_000):
        config.write_bytes(content)
        found = refused(ValueError, read_config, run)
        assert found == f"{config} is damaged; it must be the JSON that the run wrote"
    config.write_bytes(whole)

    path = run / "checkpoint.pt"
    contents = torch.load(path)
    for changes, message in (
        ({"model": None}, "has a NoneType under 'model'; it must be dict"),
        ({"step": "2"}, "has a str under 'step'; it must be int"),
        ({"random": [1]}, "has a list under 'random'; it must be dict"),
    ):
        torch.save(contents | changes, path)
        assert refused(CheckpointError, read_run, run) == f"{path} {message}"
    for changes in (
        {"optimizer": contents["optimizer"] | {"state": [1]}},
        {"random": contents["random"] | {"numpy": ()}},
        {"score": {}},
    ):
        torch.save(contents | changes, path)
        found = refused(CheckpointError, pretrain, resume=run, progress=False)
        assert found.startswith(f"{path} holds a state that does not fit the run (")
