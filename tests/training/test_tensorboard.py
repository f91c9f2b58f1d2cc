"""Logs for TensorBoard, and TensorBoard beside a run."""

import json
import socket
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from amdim_fast import pretrain
from amdim_fast.cli.main import main
from amdim_fast.training.log import RunLog
from tests.training.tiny import SMALL, SMALL_FLAGS

pytestmark = pytest.mark.usefixtures("few_digits_loaded")


def test_tensorboard_has_what_the_log_has(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = replace(SMALL, baselines=False)
    pretrain(recipe, name="x", runs_dir=tmp_path, log_every=2, progress=False, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "x" / "tensorboard")).Reload()
    lines = (tmp_path / "x" / "log.jsonl").read_text().splitlines()
    logged = [(r["step"], r["loss_1t5"]) for r in map(json.loads, lines)]
    found = [(event.step, event.value) for event in events.Scalars("loss_1t5")]
    assert [step for step, _ in found] == [step for step, _ in logged]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in logged])


def test_missing_tensorboard_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    flags = [*SMALL_FLAGS, "--tensorboard", "--name=x", f"--runs-dir={tmp_path}"]
    assert main(["pretrain", *flags]) == 2
    expected = "--tensorboard needs tensorboard, which is not installed; pip install"
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def test_a_taken_port_is_one_sentence(tmp_path, capsys):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        listener.listen()
        port = listener.getsockname()[1]
        flags = [*SMALL_FLAGS, f"--tensorboard-port={port}", "--name=x", f"--runs-dir={tmp_path}"]
        assert main(["pretrain", *flags]) == 2
    error = capsys.readouterr().err
    assert f"tensorboard_port is {port}, where TensorBoard cannot listen (Address already" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_tensorboard_is_served_until_the_log_is_closed(tmp_path, free_port):
    address = f"http://localhost:{free_port}/data/plugins_listing"
    with RunLog(tmp_path, {}, tensorboard_port=free_port) as log:
        log.write({"step": 1, "loss_1t5": 2.0})
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(address) as answer:
                    assert answer.status == 200
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address)
