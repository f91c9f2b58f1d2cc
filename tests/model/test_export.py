"""Exports: round trips, encode, and the command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms

from amdim_fast import (
    AMDIM,
    Preprocessing,
    export_encoder,
    load_checkpoint,
)
from amdim_fast.cli.main import main
from amdim_fast.views.params import POLICIES
from tests.checkpoints.export_cases import CONFIG, WEIGHTS, write_small_checkpoint
from tests.data.image_files import picture


@pytest.fixture
def checkpoint(tmp_path):
    return write_small_checkpoint(tmp_path)


@pytest.fixture
def export(checkpoint, tmp_path):
    export_encoder(checkpoint, tmp_path / "export")
    return tmp_path / "export"


def test_round_trip_is_bit_exact(checkpoint, export):
    assert {path.name for path in export.iterdir()} == {CONFIG, WEIGHTS}
    original = load_checkpoint(checkpoint).encoder.state_dict()
    for given in (export, export / WEIGHTS, export / CONFIG):
        model = AMDIM.from_pretrained(given)
        found = model.encoder.state_dict()
        assert list(found) == list(original)
        assert all(torch.equal(found[name], original[name]) for name in original)
        assert model.evaluator is None
        assert model.encoder.use_bn
        assert model.preprocessing == Preprocessing.of(POLICIES["digits"])
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(model.encode(x), AMDIM.from_pretrained(checkpoint).encode(x))


def test_configuration_says_where_it_comes_from(export):
    config = json.loads((export / CONFIG).read_text())
    assert config["architecture"] == {
        "size": 32, "ndf": 4, "n_rkhs": 8, "depth": 1, "use_bn": True, "in_channels": 3
    }  # fmt: skip
    assert config["preprocessing"] == {
        "size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize": None
    }  # fmt: skip
    said = config["provenance"]
    assert (said["source"], said["recipe"], said["step"]) == ("checkpoint.pt", "digits", 7)
    assert said["torch"] == torch.__version__
    # Any reader of safetensors gets the encoder, no probe and no loss.
    names = load_file(export / WEIGHTS).keys()
    assert names
    assert all(name.startswith(("layer_list.", "rkhs_block_")) for name in names)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_published_files_give_published_features(golden, tmp_path, size):
    data = np.load(golden / f"encoder_{size}.npz")
    file = golden / f"amdim_public_{size}.pth"
    export_encoder(file, tmp_path / "export")
    for given in (file, tmp_path / "export"):
        model = AMDIM.from_pretrained(given)
        features = model.encode(torch.from_numpy(data["x"]))
        error = (features - torch.from_numpy(data["r1"]).flatten(1)).abs().max()
        assert error < 1e-6
        policy = {32: "cifar", 64: "stl10", 128: "imagenet128"}[size]
        assert model.preprocessing == Preprocessing.of(POLICIES[policy])


def test_encode_equals_torchvision_and_the_encoder(golden):
    model = AMDIM.from_pretrained(golden / "amdim_public_64.pth")
    policy = POLICIES["stl10"]
    pixels = [picture(0, 80, 100), picture(1, 71, 70)]
    transform = transforms.Compose(
        [
            transforms.Resize(70, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize(policy.mean, policy.std),
        ]
    )
    x = torch.stack([transform(Image.fromarray(image)) for image in pixels])
    images = [torch.from_numpy(image) for image in pixels]
    model.train()
    model.encoder.layer_list[3].eval()
    modes = [part.training for part in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = model.encode(images)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert features.shape == (2, model.encoder.n_rkhs)
    assert not features.requires_grad
    assert torch.equal(features, model.encode(x))
    with torch.no_grad():
        expected = model.eval().encoder(x).r1.flatten(1)
    assert torch.equal(features, expected)
    same_size = torch.stack([images[0], images[0].flip(0)])
    assert torch.allclose(model.encode(same_size)[:1], model.encode(images[:1]), atol=1e-6)
    wrong = model.encode([image.flip(-1) for image in images])
    assert not torch.allclose(features, wrong, atol=1e-3)


def test_modes_are_restored_after_an_error():
    model = AMDIM(32, 2, 4, 1).train()
    with pytest.raises(ValueError, match="x has shape"):
        model.encode(torch.zeros(1, 3, 31, 32))
    assert all(part.training for part in model.modules())
    with pytest.raises(ValueError, match=r"set model\.preprocessing"):
        model.encode(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))


def test_policy_may_be_chosen(checkpoint, tmp_path):
    export_encoder(checkpoint, tmp_path / "cifar", policy="cifar")
    assert AMDIM.from_pretrained(tmp_path / "cifar").preprocessing.mean == POLICIES["cifar"].mean
    chosen = AMDIM.from_pretrained(tmp_path / "cifar", policy="digits")
    assert chosen.preprocessing.mean == POLICIES["digits"].mean
    with pytest.raises(ValueError, match=r"64 px and the encoder takes 32; take digits or cifar"):
        AMDIM.from_pretrained(checkpoint, policy="stl10")
    with pytest.raises(ValueError, match="policy is 'none'; it must be one of digits"):
        AMDIM.from_pretrained(checkpoint, policy="none")


def test_command(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(checkpoint), str(out)]) == 0
    assert f"wrote {out}: encoder.safetensors" in capsys.readouterr().out
    before = (out / WEIGHTS).read_bytes()
    assert main(["export", str(checkpoint), str(out)]) == 2
    assert "exists already; choose another name or move it away" in capsys.readouterr().err
    assert (out / WEIGHTS).read_bytes() == before
    for arguments, message in (
        ([tmp_path / "none.pt", tmp_path / "x"], "none.pt does not exist; give a checkpoint"),
        ([checkpoint, tmp_path / "no" / "x"], "no is not a folder; create it to write x"),
        ([out, tmp_path / "x"], "out is a folder; give the checkpoint file in it"),
    ):
        assert main(["export", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "out"}


def test_full_disk_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        export_encoder(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
