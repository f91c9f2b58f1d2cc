"""Bars of the commands: shown on stderr, and hidden by option or environment."""

import pytest

from amdim_fast import AMDIM, save_checkpoint
from amdim_fast.cli.main import main
from tests.data.image_files import write_folder
from tests.processes import start

COMMANDS = {
    "pack": ["pack", "images", "store", "--workers=0", "--size=10"],
    "pretrain": ["pretrain", "--recipe=folder", "--data-dir=images", "--skip-bad", "--name=run",
                 "--policy=cifar", "--ndf=4", "--n-rkhs=16", "--depth=1", "--batch-size=4",
                 "--epochs=1", "--device=cpu", "--workers=0"],
    "evaluate": ["evaluate", "model.pt", "--data=folder", "--data-dir=images", "--workers=0",
                 "--methods", "probes", "--probe-epochs=1", "--skip-bad"],
}  # fmt: skip
BARS = {
    "pack": ["image/s"],
    "pretrain": ["checking", "step/s"],
    "evaluate": ["checking", "features", "probes"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_progress(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "images", test=2, train=4, sizes=((32, 32),))
    save_checkpoint("model.pt", AMDIM(32, 4, 16, 1))
    assert main([*COMMANDS[command], "--no-progress"]) == 0
    quiet = capfd.readouterr()
    assert quiet.err == ""
    for name in ("store", "runs", "evaluation"):
        path = tmp_path / name
        path.rename(tmp_path / f"{name} before") if path.exists() else None
    assert main(COMMANDS[command]) == 0
    said = capfd.readouterr()
    assert all(bar in said.err for bar in BARS[command])
    assert said.out.splitlines()[-1].split()[0] == quiet.out.splitlines()[-1].split()[0]


def test_tqdm_disable_hides_bars_alone(tmp_path):
    """By the whole command: tqdm reads its variables when it is imported."""
    write_folder(tmp_path / "images", test=0, train=1, sizes=((9, 9),))
    (tmp_path / "images" / "train" / "stray.png").write_bytes(b"")
    done = start(
        ["-m", "amdim_fast", "pack", "images", "store", "--workers=0"],
        tmp_path,
        variables={"TQDM_DISABLE": "1"},
        imported=(),
    )
    said = done.communicate(timeout=120)
    assert done.returncode == 0
    assert said == (
        "packed 2 images into store\n",
        "left out: 1 images beside the class folders (train/stray.png)\n",
    )
