"""Worker processes: what they import, what they cannot hand over, and how they end."""

import multiprocessing.forkserver
import os
from pathlib import Path

import pytest

from amdim_fast.data import workers
from amdim_fast.data.workers import ordered_map
from tests.data.image_files import assert_group_ends, write_folder
from tests.processes import start

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class TwoWords(Exception):  # noqa: N818
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def not_sendable(task):
    if task == "raised":
        raise TwoWords("cannot", "travel")
    return open(os.devnull)


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("raised", RuntimeError, "^TwoWords: cannot travel$"),
        ("returned", OSError, r"^a worker cannot hand over its result \(cannot pickle '_io.Text"),
    ],
)
def test_what_cannot_be_pickled_does_not_hang(task, error, message):
    with pytest.raises(error, match=message):
        next(ordered_map(not_sendable, [task], workers=1))


SCRIPT = """
import sys
from amdim_fast.data.datasets import load_data
from amdim_fast.data.loader import training_batches
if __name__ == "__main__":
    loader = training_batches(load_data("folder", sys.argv[1]).train, 2, seed=0, workers=2)
    next(loader)
    print("ready", flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"), [("import time; time.sleep(60)", -9), ("sys.exit(3)", 3), ("1 / 0", 1)]
)
def test_processes_end_with_the_program(tmp_path, end, code):
    write_folder(tmp_path / "images", train=30, test=0)
    (tmp_path / "script.py").write_text(SCRIPT.format(end=end))
    process = start(["script.py", "images"], tmp_path, session=True)
    assert process.stdout.readline() == "ready\n"
    if code == -9:
        process.kill()
    _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert ("ZeroDivisionError" in error) == (code == 1)
    assert_group_ends(process.pid)


UNGUARDED = """
import sys
from amdim_fast.data.datasets import load_data
from amdim_fast.data.image_sets import FileImages
from amdim_fast.data.loader import training_batches
class Own(FileImages):
    pass
files = load_data("folder", sys.argv[1]).train
images = Own(files.root, [files.name(i) for i in range(4)]) if sys.argv[2] == "own" else files
with open("imports", "a") as imports:
    imports.write("x")
with training_batches(images, 2, seed=0, workers=2) as loader:
    print(next(loader).images.shape[0])
"""


def test_a_script_without_the_guard(tmp_path):
    """Workers import it only for what is in it; then the sentence says what is amiss."""
    write_folder(tmp_path / "images", train=4, test=0)
    (tmp_path / "script.py").write_text(UNGUARDED)
    plain = start(["script.py", "images", "files"], tmp_path, imported=())
    assert plain.communicate(timeout=60) == ("2\n", "")
    assert (tmp_path / "imports").read_text() == "x"
    own = start(["script.py", "images", "own"], tmp_path, imported=())
    said, error = own.communicate(timeout=60)
    guard = 'it must start its work below `if __name__ == "__main__":`'
    assert said == ""
    assert f"RuntimeError: a worker process is importing this script: {guard}\n" in error
    assert error.splitlines()[-1] == (
        "ChildProcessError: a worker process died; if memory ran out, use fewer workers; it imports"
        f" the main script for what it works on: {guard}"
    )


def libraries_of_the_server(_task):
    return Path(f"/proc/{os.getppid()}/maps").read_text()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="/proc is Linux's")
def test_torch_is_imported_by_the_server():
    assert "libtorch" in next(ordered_map(libraries_of_the_server, [0], workers=1))


def test_what_a_program_has_preloaded_stays(monkeypatch):
    server = multiprocessing.forkserver._forkserver
    monkeypatch.setattr(server, "_preload_modules", ["numpy"])
    workers._preload()
    assert server._preload_modules == ["numpy"]
    monkeypatch.setattr(server, "_preload_modules", ["__main__"])
    workers._preload()
    assert server._preload_modules == ["__main__", *workers.PRELOADED]
