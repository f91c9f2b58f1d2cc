"""What a run writes beside its checkpoints: a picture that fails costs nothing, a record is named.

/dev/full is a disk without room.
"""

import socket
import time
from types import SimpleNamespace

import pytest

from amdim_fast.training.log import CURVES_SECONDS, RunLog
from amdim_fast.training.tensorboard import check_tensorboard
from tests.processes import start

RECORD = {"step": 1, "loss_1t5": 2.0, "loss_1t7": 2.0, "loss_5t5": 2.0, "lgt_reg": 0.1}


def test_curves_that_cannot_be_written_stop_nothing(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "curves.png").mkdir()
    with RunLog(tmp_path, {}) as log:
        log.write(RECORD)
        log.draw_curves()
        log.finish({"step": 1})
    path = tmp_path / "curves.png"
    reason = f"{path} cannot be written (Is a directory)"
    said = f"amdim-fast: {path} could not be drawn ({reason}); the run goes on"
    assert capsys.readouterr().err.splitlines() == [said, said]
    assert (tmp_path / "summary.json").exists()


def test_curves_are_drawn_at_times_and_at_the_end(tmp_path, monkeypatch):
    drawn, now = [], [100.0]
    monkeypatch.setattr(RunLog, "draw_curves", lambda self: drawn.append(now[0]))
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("amdim_fast.training.log.time", clock)
    with RunLog(tmp_path, {}) as log:
        first, last = 100.0 + CURVES_SECONDS, 100.0 + 2 * CURVES_SECONDS
        for now[0] in (100.0, first - 1, first, first + 1, last - 1, last, last + 1):
            log.update_curves()
        log.finish({"step": 1})
    assert drawn == [first, last, last + 1]


def test_a_record_without_room_names_the_log(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(
            OSError,
            match=rf"^{tmp_path}/log\.jsonl cannot be written \(No space left on device\); make"
            rf" room and go on with --resume {tmp_path}$",
        ),
        RunLog(tmp_path, {}) as log,
    ):
        log.write(RECORD)


SERVING = """
import sys, time
from amdim_fast.training.tensorboard import TensorBoardServer
server = TensorBoardServer(sys.argv[1], int(sys.argv[2]))
time.sleep(600)
"""


def is_listening(port):
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0


def wait_until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_tensorboard_ends_with_a_killed_run(tmp_path):
    """It stayed, and the run could not be resumed on its port."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    with start(["-c", SERVING, tmp_path, port], tmp_path) as process:
        wait_until(lambda: is_listening(port))
        process.kill()
    wait_until(lambda: not is_listening(port), 20)
    check_tensorboard(port)
