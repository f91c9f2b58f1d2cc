"""Single flipped bits and overwritten blocks of checkpoints: an error, or the same contents."""

import errno
import io
import random
import struct
import warnings
import zipfile

import pytest
import torch

from amdim_fast import CheckpointError, load_checkpoint, save_checkpoint
from amdim_fast.checkpoints import archive
from amdim_fast.checkpoints.torch_files import read_checkpoint
from tests.checkpoints.cases import GOLDEN, small_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run's checkpoint: its bytes, its contents and the place of the central directory."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint.pt"
    model = small_model(ndf=1, n_rkhs=2, depth=1)
    optimizer = torch.optim.Adam(model.parameters())
    save_checkpoint(path, model, optimizer=optimizer.state_dict(), random=torch.get_rng_state())
    with zipfile.ZipFile(path) as file:
        return path.read_bytes(), read_checkpoint(path), file.start_dir


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return type(first) is type(second) and first == second


def outcome(folder, content, contents):
    """ "refused", or "read" for the same contents."""
    path = folder / "damaged.pt"
    path.write_bytes(content)
    try:
        found = read_checkpoint(path)
    except CheckpointError as error:
        message = str(error)
    else:
        assert equal(contents, found)
        return "read"
    assert str(path) in message
    assert "\n" not in message
    return "refused"


def flipped(content, places):
    for place in places:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


def data_of(content, entry):
    """Place of an entry's first byte: behind its header, its name and its padding."""
    name, extra = struct.unpack_from("<HH", content, entry.header_offset + 26)
    return entry.header_offset + 30 + name + extra


def test_no_bit_flips_unseen(whole, tmp_path):
    content, contents, directory = whole
    generator = random.Random(0)
    anywhere = (generator.randrange(8 * len(content)) for _ in range(40))
    in_directory = (generator.randrange(8 * directory, 8 * len(content)) for _ in range(80))
    at_the_end = generator.sample(range(8 * (len(content) - 98), 8 * len(content)), 60)
    outcomes = [
        [outcome(tmp_path, changed, contents) for changed in flipped(content, places)]
        for places in (anywhere, in_directory, at_the_end)
    ]
    assert [set(found) for found in outcomes] == [{"refused", "read"}] * 3
    refused = [found.count("refused") / len(found) for found in outcomes]
    assert min(refused) > 0.4


def test_no_flip_in_a_tensor_is_read(whole, tmp_path):
    content, contents, _ = whole
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = [e for e in file.infolist() if "/data/" in e.filename and e.file_size]
    places = [8 * data_of(content, entry) + 3 for entry in random.Random(1).sample(entries, 30)]
    for changed in flipped(content, places):
        assert outcome(tmp_path, changed, contents) == "refused"


def test_overwritten_blocks_are_refused(whole, tmp_path):
    content, contents, directory = whole
    generator = random.Random(2)
    for _ in range(20):
        start = generator.randrange(directory - 512)
        changed = content[:start] + generator.randbytes(512) + content[start + 512 :]
        assert outcome(tmp_path, changed, contents) == "refused"


def test_files_of_others_are_compared_too(tmp_path):
    content = (GOLDEN / "amdim_public_32.pth").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entry = max(file.infolist(), key=lambda entry: entry.file_size)
    path = tmp_path / "file.pth"
    path.write_bytes(next(flipped(content, [8 * data_of(content, entry) + 5])))
    with pytest.raises(
        CheckpointError, match=r"file\.pth is damaged \(Bad CRC-32 for file .*data/"
    ):
        load_checkpoint(path)


def test_files_without_checksums_are_read(tmp_path):
    path = tmp_path / "file.pt"
    try:
        torch.serialization.set_crc32_options(False)
        save_checkpoint(path, small_model())
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as file:
        assert not any(entry.CRC for entry in file.infolist())
    load_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        load_checkpoint(path)


def test_a_compressed_copy_is_read_and_two_entries_of_one_name_are_not(tmp_path):
    original = GOLDEN / "amdim_public_32.pth"
    packed, doubled = tmp_path / "packed.pth", tmp_path / "doubled.pth"
    with zipfile.ZipFile(original) as old:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))
        with zipfile.ZipFile(doubled, "w") as new, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for entry in [*old.infolist(), old.infolist()[-1]]:
                new.writestr(entry.filename, old.read(entry))
    states = [load_checkpoint(path).state_dict() for path in (original, packed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    with pytest.raises(CheckpointError, match="two entries have one name"):
        load_checkpoint(doubled)


def test_a_failing_disk_is_not_called_damage(tmp_path, monkeypatch):
    path = tmp_path / "file.pt"
    save_checkpoint(path, small_model())

    def fail(*_arguments, **_options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(archive, "_check_entry", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_checkpoint(path)
