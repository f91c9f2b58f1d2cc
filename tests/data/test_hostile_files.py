"""Files that are no images but have an image's name: none runs, none is waited for."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from amdim_fast.cli.main import main
from amdim_fast.data.decoding import BadImage, decode
from amdim_fast.data.folders import list_images
from amdim_fast.data.packed_store import SKIPPED, read_store
from amdim_fast.data.packing import pack
from amdim_fast.files import read_whole
from tests.data.image_files import write_folder
from tests.processes import start

EPS = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
FORMATS = "BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"


def refused(path):
    with pytest.raises(BadImage) as raised:
        decode(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_no_program_is_started(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the name of the file."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "x.png").write_text(EPS)
    Image.init()
    assert refused(tmp_path / "x.png") == (
        f"{tmp_path / 'x.png'} is not an image ({FORMATS}), or its start is damaged"
    )
    assert not (tmp_path / "ran").exists()


def test_what_never_ends_is_not_read(tmp_path, capsys):
    pipe, zeros, long = (tmp_path / name for name in ("pipe.png", "zeros.png", "long.png"))
    os.mkfifo(pipe)
    zeros.symlink_to("/dev/zero")
    long.touch()
    os.truncate(long, 2**40)
    for path in (pipe, zeros):
        assert refused(path) == f"{path} is a device or a pipe; it must be a file"
    assert refused(long) == f"{long} has 1,099,511,627,776 bytes; it may have 1,073,741,824"
    for path in (pipe, zeros, long):
        assert main(["views", str(path), f"--out={tmp_path / 'views.png'}"]) == 2
        assert f"amdim-fast: {path} " in capsys.readouterr().err


def test_a_file_is_read_up_to_its_bound(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    assert read_whole(path, 1000) == b"x" * 1000
    with pytest.raises(ValueError, match=r"a has 1,000 bytes; it may have 999$"):
        read_whole(path, 999)
    with pytest.raises(FileNotFoundError, match=r"b cannot be read \(No such file or directory\)"):
        read_whole(tmp_path / "b")


LIMITED = """
import resource, sys
from PIL import Image
from amdim_fast.data.packing import pack
Image.init()
pack("small", "first", workers=0, progress=False)
taken = 4096 * int(open("/proc/self/statm").read().split()[0])
for name in sys.argv[1:]:
    resource.setrlimit(resource.RLIMIT_AS, (taken + 20 * 2**20, resource.RLIM_INFINITY))
    try:
        print(pack(name, name + ".store", workers=0, skip_bad=True, progress=False))
    except MemoryError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_want_of_memory_is_no_bad_image(tmp_path):
    """Readers say MemoryError, "could not create decoder object" or "broken data stream"."""
    (tmp_path / "small").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    kinds = {"png": {}, "webp": {}, "jpg": {"progressive": True}}
    for kind, options in kinds.items():
        Image.fromarray(pixels[:8, :8]).save(tmp_path / "small" / f"a.{kind}")
        (tmp_path / kind).mkdir()
        options = {"compress_level": 1, "quality": 60} | options
        Image.fromarray(pixels).save(tmp_path / kind / f"a.{kind}", **options)
    with start(["-c", LIMITED, *kinds], tmp_path) as process:
        out, error = process.communicate(timeout=120)
    assert out.splitlines() == [
        f"there is no memory to decode {tmp_path}/{kind}/a.{kind}; use fewer workers, or raise the"
        " limit (ulimit -v)"
        for kind in kinds
    ], error
    for kind in kinds:
        assert not (tmp_path / f"{kind}.store" / SKIPPED).exists()


def test_want_of_memory_ends_a_command_with_a_sentence(monkeypatch, capsys):
    def torch_exhausted(*_arguments, **_options):
        torch.empty(2**60)

    def exhausted(*_arguments, **_options):
        raise MemoryError

    for function, said in (
        (torch_exhausted, "out of memory ([enforce fail at "),
        (exhausted, "out of memory\n"),
    ):
        monkeypatch.setattr("amdim_fast.cli.pack.pack", function)
        assert main(["pack", "a", "b"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"amdim-fast: {said}")
        assert error.count("\n") == 1


def test_names_are_printed_in_one_line(tmp_path, capsys):
    """A newline, the start of a terminal's command, and a name that is not UTF-8."""
    write_folder(tmp_path / "data", classes=("cat",), train=2, test=0)
    odd = ["new\nline.png", "\x1b[31mred.png", "\u202egnp.png", os.fsdecode(b"\xff.png")]
    printed = ["new\\nline.png", "\\x1b[31mred.png", "\\u202egnp.png", os.fsdecode(b"\xff.png")]
    folder = tmp_path / "data" / "train" / "cat"
    for name in odd:
        (folder / name).touch()
    (folder / "a\x07b.png").symlink_to(folder / "absent")
    assert list_images(tmp_path / "data").ignored[-1].endswith("(train/cat/a\\x07b.png)")
    store = tmp_path / "store"
    packed = pack(tmp_path / "data", store, workers=0, skip_bad=True, progress=False)
    assert sorted(packed.skipped) == sorted(f"{folder / name} is empty" for name in odd)
    assert sorted(read_store(store).skipped) == sorted(f"{folder}/{n} is empty" for n in printed)
    assert main(["views", str(folder / odd[0]), f"--out={tmp_path / 'views.png'}"]) == 2
    assert capsys.readouterr().err == f"amdim-fast: {folder}/new\\nline.png is empty\n"


def test_paths_that_are_too_long_are_named(tmp_path):
    """They were passed over without a word."""
    write_folder(tmp_path, classes=("cat", "dog"), test=0)
    start_folder = os.open(tmp_path / "train" / "cat", os.O_RDONLY)
    folder = os.dup(start_folder)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=folder)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    os.close(start_folder)
    with pytest.raises(OSError, match=r"xxx cannot be read \(File name too long\)$"):
        list_images(tmp_path)
