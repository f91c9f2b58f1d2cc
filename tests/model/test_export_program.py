"""Encoders as programs of torch.export and of ONNX: their features, and what stops an export."""

import json
import sys

import pytest
import torch

from amdim_fast import AMDIM, BackboneEncoder, export_program, load_checkpoint, save_checkpoint
from amdim_fast.cli.main import main
from tests.checkpoints.export_cases import write_small_checkpoint
from tests.forked import TORCH
from tests.processes import run

BATCHES = (1, 5)  # the program was made with another
MARGIN = 4  # times the rounding of the encoder in float32


@pytest.fixture
def checkpoint(tmp_path):
    return write_small_checkpoint(tmp_path)


def assert_equal_features(called, checkpoint):
    """``called`` gives r1, r5 and r7 of a batch: as exact as the encoder in float32 is."""
    model = load_checkpoint(checkpoint).eval()
    truth = load_checkpoint(checkpoint).eval().double()
    for images in BATCHES:
        x = torch.randn(images, 3, model.encoder.size, model.encoder.size)
        with torch.no_grad():
            expected, plain = truth.encoder(x.double()), model.encoder(x)
        found = called(x)
        assert len(found) == 3
        for part, exact, rounded in zip(found, expected, plain, strict=True):
            part = torch.as_tensor(part)
            assert part.dtype == torch.float32
            assert part.shape == exact.shape
            error = (part.double() - exact).abs().max()
            assert error <= MARGIN * (rounded.double() - exact).abs().max()


LOADED = """
import sys, torch
sys.modules["amdim_fast"] = None
program = torch.export.load(sys.argv[1]).module()
x = torch.load(sys.argv[2])
torch.save([part.detach() for part in program(x)], sys.argv[3])
"""


def test_torch_export(checkpoint, tmp_path, capsys):
    """Loaded where this package cannot be imported."""
    out = tmp_path / "out"
    assert main(["export", str(checkpoint), str(out), "--format=torch-export"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"wrote {out}: encoder.pt2, ")
    assert {path.name for path in out.iterdir()} == {"encoder.pt2", "config.json"}
    program = torch.export.load(out / "encoder.pt2").module()
    assert_equal_features(program, checkpoint)
    torch.save(torch.zeros(3, 3, 32, 32), tmp_path / "x")
    arguments = map(str, (out / "encoder.pt2", tmp_path / "x", tmp_path / "y"))
    done = run(["-c", LOADED, *arguments], tmp_path, imported=TORCH)
    assert done.returncode == 0, done.stderr
    assert [len(part) for part in torch.load(tmp_path / "y")] == [3, 3, 3]
    save_checkpoint(tmp_path / "other.pt", AMDIM(32, 4, 8, 1, use_bn=True))
    with pytest.raises(AssertionError):  # another model's features are not these
        assert_equal_features(program, tmp_path / "other.pt")
    config = json.loads((out / "config.json").read_text())
    assert (config["format"], config["program"]) == ("amdim_fast program", "encoder.pt2")
    assert config["inputs"] == {"images": ["batch", 3, 32, 32]}
    assert config["outputs"] == {
        "r1": ["batch", 8, 1, 1], "r5": ["batch", 8, 5, 5], "r7": ["batch", 8, 7, 7]
    }  # fmt: skip
    assert config["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert config["provenance"]["recipe"] == "digits"
    said = "'amdim_fast program' 1; it must be 'amdim_fast encoder' 1; give the checkpoint of this"
    with pytest.raises(ValueError, match=said):
        AMDIM.from_pretrained(out)


@pytest.mark.filterwarnings("ignore:::onnxscript", "ignore:::torch.onnx")
def test_onnx(checkpoint, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    config = export_program(checkpoint, tmp_path / "out", format="onnx")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"encoder.onnx", "config.json"}
    session = runtime.InferenceSession(
        str(tmp_path / "out" / "encoder.onnx"), providers=["CPUExecutionProvider"]
    )
    for given, stated in (
        (session.get_inputs(), config["inputs"]),
        (session.get_outputs(), config["outputs"]),
    ):
        assert {part.name: list(part.shape) for part in given} == stated
    assert_equal_features(lambda x: session.run(None, {"images": x.numpy()}), checkpoint)


def test_onnx_needs_onnxscript(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    out = tmp_path / "out"
    assert main(["export", str(checkpoint), str(out), "--format=onnx"]) == 2
    error = capsys.readouterr().err
    assert "writing ONNX needs onnxscript, which is not installed; pip install 'amdim-" in error
    assert "'amdim-fast[onnx]'\n" in error
    assert not out.exists()


def test_bad_calls_leave_nothing(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="format is 'tflite'; it must be one of torch-export, on"):
        export_program(checkpoint, tmp_path / "out", format="tflite")
    with pytest.raises(ValueError, match="is a folder; give the checkpoint file in it"):
        export_program(tmp_path, tmp_path / "out")

    def fails(*_arguments, **_options):
        raise RuntimeError("an operation\nwith its graph")

    monkeypatch.setattr("torch.export.export", fails)
    with pytest.raises(ValueError, match=r"cannot be exported as torch-export \(an operation\)$"):
        export_program(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_backbone(tmp_path):
    model = AMDIM.over(BackboneEncoder("squeezenet1_1", 128, 4))
    model.train()
    with torch.no_grad():
        model.encoder(torch.randn(4, 3, 128, 128))
    save_checkpoint(tmp_path / "model.pt", model)
    export_program(tmp_path / "model.pt", tmp_path / "out")
    program = torch.export.load(tmp_path / "out" / "encoder.pt2").module()
    assert_equal_features(program, tmp_path / "model.pt")
