"""``amdim-fast info``."""

import sys
from dataclasses import asdict

import pytest
import torch

import amdim_fast
from amdim_fast import AMDIM, export_encoder, save_checkpoint
from amdim_fast.cli.info import describe_installation, describe_model
from amdim_fast.cli.main import main
from amdim_fast.training.recipes import RECIPES
from amdim_fast.views import compiled
from tests.processes import run


def test_installation_as_a_process():
    done = run(["-m", "amdim_fast", "info"], ".")
    assert done.returncode == 0, done.stderr
    for name, value in {"amdim_fast": amdim_fast.__version__, "torch": torch.__version__}.items():
        line = next(line for line in done.stdout.splitlines() if line.startswith(name + " "))
        assert line.split()[-1] == value
    assert "loss, triton backend" in done.stdout


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr("amdim_fast.nce.products._cpu_library", lambda: "onednn")
    facts = describe_installation()
    assert facts["views, CPU library"] == "built"
    assert facts["loss, torch backend"] == "runs; float32 products on CPUs by onednn"
    monkeypatch.setattr(compiled, "load_cpu", lambda: False)
    monkeypatch.setattr(compiled, "load_cuda", lambda: False)
    monkeypatch.setattr("amdim_fast.cli.info.PACKAGES", ("numpy", "no-such-package"))
    facts = describe_installation()
    assert facts["views, CPU library"] == "not built"
    assert facts["views, CUDA library"] != "built"
    assert facts["no-such-package"] == "not installed"
    if not torch.cuda.is_available():
        assert facts["CUDA devices"] == "none"


def test_a_tree_that_is_not_installed_has_no_kernels(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "amdim_fast.kernels.nce_forward", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["info"]) == 0
    line = next(s for s in capsys.readouterr().out.splitlines() if s.startswith("loss, triton"))
    assert line.endswith("amdim_fast.kernels.nce_forward is missing; pip install . installs it")


def test_commands_that_make_views_need_their_library(monkeypatch, capsys):
    monkeypatch.setattr(compiled, "load_cpu", lambda: False)
    for command in (["views", "x.png"], ["pretrain"], ["evaluate", "x"], ["segment", "x", "y"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("amdim-fast: views need the compiled library, which is not built: ")
        assert error.count("\n") == 1


def test_models(golden, tmp_path, capsys):
    model = AMDIM(32, 4, 8, 1, n_classes=3)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, model, recipe=asdict(RECIPES["digits"]), step=7)
    export_encoder(path, tmp_path / "export")
    total = sum(value.numel() for value in model.parameters())
    inside = sum(value.numel() for value in model.encoder.parameters())
    facts = describe_model(path)
    assert facts["parameters"] == f"{inside:,} in the encoder, {total:,} in all"
    assert facts["architecture"] == "ndf 4, n_rkhs 8, depth 1, use_bn False"
    assert (facts["recipe"], facts["step"], facts["probes"]) == ("digits", "7", "3 classes")
    exported = describe_model(tmp_path / "export")
    assert (exported["recipe"], exported["step"], exported["probes"]) == ("digits", "7", "none")
    assert exported["source"] == "checkpoint.pt"
    assert main(["info", str(golden / "amdim_public_64.pth")]) == 0
    printed = capsys.readouterr().out
    assert "3 x 64 x 64 px, images resized to 70 px" in printed
    assert "recipe" in printed
    assert "not known" in printed


@pytest.mark.parametrize("name", ["none.pt", "empty.pt"])
def test_no_checkpoint(tmp_path, capsys, name):
    (tmp_path / "empty.pt").write_bytes(b"")
    assert main(["info", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["bench", "evaluate", "export", "info", "views"])
def test_help_has_defaults(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"usage: amdim-fast {command}" in text
    expected = {
        "bench": (
            "width D of the features (default: 1024)",
            "cpu or cuda; if not given, cuda where torch finds a GPU",
        ),
        "evaluate": ("neighbours that vote (default: 20)", "GiB (default: 16.0)"),
        "export": ("folder to create",),
        "info": ("checkpoint file or folder of an export",),
        "views": ("views of each image (default: 4)",),
    }
    assert all(part in text for part in expected[command])
