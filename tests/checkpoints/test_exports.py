"""What is said to exports that are damaged, do not fit together, or were written by hand."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from amdim_fast import AMDIM, CheckpointError, export_encoder, save_checkpoint
from tests.checkpoints.export_cases import CONFIG, WEIGHTS, write_small_export


@pytest.fixture
def export(tmp_path):
    return write_small_export(tmp_path)


def changed(folder, **entries):
    """Rewrite entries of a configuration, "a.b" in nested ones."""
    config = json.loads((folder / CONFIG).read_text())
    for name, value in entries.items():
        place, *parts = config, *name.split("__")
        for part in parts[:-1]:
            place = place[part]
        if value is None:
            del place[parts[-1]]
        else:
            place[parts[-1]] = value
    (folder / CONFIG).write_text(json.dumps(config))


def resealed(folder):
    """Make the configuration's hash that of the weights as they are now."""
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    changed(folder, sha256=digest)


def test_the_folder_of_a_run_is_no_export(tmp_path):
    """It has a ``config.json`` too; a checkpoint in it is named."""
    (tmp_path / CONFIG).write_text('{"recipe": {}, "data_dir": "data"}')
    for name in ("", "checkpoint.pt", "best.pt"):
        message = f"{tmp_path / CONFIG} has no entry 'format'; export again"
        if name:
            save_checkpoint(tmp_path / name, AMDIM(32, 4, 8, 1))
            message = (
                f"{tmp_path} is not an export; give one of its checkpoint files, such as"
                f" {tmp_path / name}"
            )
        with pytest.raises(CheckpointError) as caught:
            AMDIM.from_pretrained(tmp_path)
        assert str(caught.value) == message


@pytest.mark.parametrize("position", [0, 9, -1])
def test_flipped_bit_is_damage(export, position):
    content = bytearray((export / WEIGHTS).read_bytes())
    content[position] ^= 1
    (export / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors is damaged: its SHA-256"):
        AMDIM.from_pretrained(export)


def test_wrong_weights_under_a_right_hash(export, tmp_path):
    state = load_file(export / WEIGHTS)
    first, *_, last = state
    cases = [
        (b"", "not a safetensors file"),
        ((export / WEIGHTS).read_bytes()[:-4], "not a safetensors file"),
        ({k: v for k, v in state.items() if k != last}, "holds no AMDIM|does not fit"),
        ({**state, "stray": torch.zeros(1)}, "does not fit its hyperparameters"),
        ({**state, first: torch.zeros(3)}, "holds no AMDIM|does not fit|is of"),
        ({"weight": torch.zeros(1)}, "holds no AMDIM encoder"),
    ]
    for number, (content, message) in enumerate(cases):
        folder = tmp_path / str(number)
        shutil.copytree(export, folder)
        if isinstance(content, bytes):
            (folder / WEIGHTS).write_bytes(content)
        else:
            save_file(content, folder / WEIGHTS)
        resealed(folder)
        with pytest.raises(CheckpointError, match=message):
            AMDIM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format": "other"}, "its format is 'other' 1; it must be 'amdim_fast encoder' 1"),
        ({"format_version": 2}, "it must be 'amdim_fast encoder' 1"),
        ({"weights": "../checkpoint.pt"}, "it must be the name of a file in the same folder"),
        ({"weights": "/etc/passwd"}, "it must be the name of a file in the same folder"),
        ({"weights": ".."}, "it must be the name of a file in the same folder"),
        ({"weights": "..\\x"}, "it must be the name of a file in the same folder"),
        ({"sha256": None}, "has no entry 'sha256'; export again"),
        ({"architecture": []}, "architecture is list; it must be dict"),
        ({"architecture__ndf": 4.0}, "ndf is float; it must be int"),
        ({"architecture__ndf": True}, "ndf is bool; it must be int"),
        (
            {"architecture__ndf": 10**9},
            "says that ndf is 1000000000, but its weights are those of 4",
        ),
        ({"architecture__depth": 10**7}, "says that depth is 10000000, but its weights are those"),
        (
            {"preprocessing__std": [0.5, 0.5]},
            "std has 2 values; it must have 3, one for each channel",
        ),
        ({"preprocessing__std": [0.5, 0.5, 0.0]}, "it must be positive"),
        ({"preprocessing__mean": [0.5, 0.5, float("nan")]}, "a finite number for each channel"),
        ({"preprocessing__size": 64}, "makes 64 pixels and the encoder takes 32"),
        ({"preprocessing__mean": [0, True, 0]}, "it must be a number for each channel"),
        ({"preprocessing__resize": 10**39}, "it must be at most 65536"),
        ({"preprocessing__resize": 31}, "resize is 31; it must be at least size = 32"),
    ],
)
def test_configurations_are_checked(export, entries, message):
    changed(export, **entries)
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        AMDIM.from_pretrained(export)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"components": 10**8},
            "says that components is 100000000, but its weights are those of 3",
        ),
        ({"components": None}, "components is NoneType; it must be int"),
        ({"mixture_hidden": 7}, "says that mixture_hidden is 7, but its weights are those of 8"),
        ({"tau": None}, "tau is NoneType; it must be float"),
        (None, "says that components is None, but its weights are those of 3"),
    ],
)
def test_mixtures_of_configurations_are_checked(entries, message, tmp_path):
    save_checkpoint(tmp_path / "mixture.pt", AMDIM(32, 2, 8, 1, components=3))
    export_encoder(tmp_path / "mixture.pt", tmp_path / "export")
    path = tmp_path / "export" / CONFIG
    config = json.loads(path.read_text())
    config["mixture"] = config["mixture"] | entries if entries else None
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        AMDIM.from_pretrained(tmp_path / "export")
    assert message in str(caught.value)


def test_missing_and_garbled_files(export, tmp_path):
    (export / "other.safetensors").write_bytes((export / WEIGHTS).read_bytes())
    with pytest.raises(CheckpointError, match=r"belongs to encoder\.safetensors, not to other"):
        AMDIM.from_pretrained(export / "other.safetensors")
    (export / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"which config\.json names, does not exist"):
        AMDIM.from_pretrained(export)
    for garbled in (b"\xff\xfe", b"{", b"[" * 100_000):
        (export / CONFIG).write_bytes(garbled)
        with pytest.raises(CheckpointError, match="is damaged or not JSON"):
            AMDIM.from_pretrained(export)
    (export / CONFIG).write_text("[]")
    with pytest.raises(CheckpointError, match="the file is list; it must be dict"):
        AMDIM.from_pretrained(export)
    (export / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"an export is a folder with config\.json"):
        AMDIM.from_pretrained(export)
    with pytest.raises(FileNotFoundError, match="does not exist; give a checkpoint file"):
        AMDIM.from_pretrained(tmp_path / "none")
