"""Files that are whole or absent, even where the system says only at the end that it has no room.

RLIMIT_FSIZE makes a disk that takes only so much of a file.
"""

import errno
import os
import resource
import signal
import stat
import time

import pytest

from amdim_fast.cli.main import main
from amdim_fast.files import (
    folder_written_whole,
    is_temporary,
    keep_as,
    remove_temporaries,
    written_whole,
)
from tests.checkpoints.export_cases import write_small_checkpoint


def failing_sync(monkeypatch, fails, number):
    """fsync of what ``fails`` says, from its mode, ends in the system's error."""
    sync = os.fsync

    def fsync(descriptor):
        if fails(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture
def full_disk():
    """Files take a kilobyte."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_tells_late_is_heard(tmp_path, monkeypatch):
    """With delayed allocation only fsync says that the disk is full; "wrote" was said."""
    failing_sync(monkeypatch, stat.S_ISREG, errno.ENOSPC)
    out = tmp_path / "out"
    sentence = rf"^{out} cannot be written \(No space left on device\)$"
    with pytest.raises(OSError, match=sentence) as raised, folder_written_whole(out) as folder:
        (folder / "a").write_text("a")
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match=sentence), written_whole(out) as file:
        file.write(b"a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_folders_are_synced_where_the_system_can(tmp_path, monkeypatch, number):
    failing_sync(monkeypatch, stat.S_ISDIR, number)
    out = tmp_path / "out"
    if number == errno.EIO:
        with pytest.raises(OSError, match=r"out cannot be written \(Input/output error\)$"):
            write(out)
    else:
        write(out)
        assert out.read_bytes() == b"a"


def write(path):
    with written_whole(path) as file:
        file.write(b"a")


def without_links(*_arguments):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_full_disk_is_named(tmp_path, full_disk, monkeypatch):
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.write(b"x" * 1024)
    out = tmp_path / "out"
    sentence = rf"^{out} cannot be written \(File too large\)$"
    with pytest.raises(OSError, match=sentence), folder_written_whole(out) as folder:
        (folder / "a").write_bytes(b"x" * 2000)
    with pytest.raises(OSError, match=sentence), written_whole(out) as file:
        file.write(b"x" * 20_000)
    with monkeypatch.context() as patch:  # a file system without hard links, so a copy
        patch.setattr(os, "link", without_links)
        keep_as(source, out)
        assert out.read_bytes() == source.read_bytes()
        out.unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=sentence):
            keep_as(source, out)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_other_files_keep_their_names_in_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent'$"), written_whole(tmp_path / "out"):
        (tmp_path / "absent").read_bytes()
    (tmp_path / "source").touch()
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match=r"source/a cannot be written \(Not a directory\)$"):
        write(tmp_path / "source" / "a")
    with pytest.raises(OSError, match=r"out cannot be written \(Is a directory\)$"):
        keep_as(tmp_path / "source", tmp_path / "out")


def test_only_temporaries_are_removed(tmp_path):
    """Of killed writers, folders too; a user's own hidden files stay."""
    stays = [".my notes.tmp", ".tmp", "a.0123abcd.tmp", ".a.0123abcd.tmp.gz", ".a.0123ABCD.tmp"]
    goes = [".a.0123abcd.tmp", ".checkpoint.pt.00000000.tmp", ".out.ffffffff.tmp"]
    for name in [*stays, *goes[:2]]:
        (tmp_path / name).touch()
        assert is_temporary(name) == (name in goes)
    (tmp_path / goes[2] / "inner").mkdir(parents=True)
    (tmp_path / goes[2] / "inner" / "a").touch()
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(stays)


def test_a_command_names_what_it_cannot_write(tmp_path, capsys, request):
    checkpoint = write_small_checkpoint(tmp_path)
    request.getfixturevalue("full_disk")
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"amdim-fast: {tmp_path / 'out'} cannot be written (File too large)\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_sigterm_leaves_nothing_half_written(tmp_path, capsys, monkeypatch):
    """It came before a folder had its name, and the folder with the temporary one stayed."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def terminated(*_arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    checkpoint = write_small_checkpoint(tmp_path)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", terminated)
            assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "amdim-fast: terminated\n"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
