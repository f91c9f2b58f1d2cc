"""What ``make demo`` runs: the digits recipe through every command of amdim-fast.

    python -m benchmarks.demo [--folder DIR] [--device cpu] [options of amdim-fast pretrain]

Images of digits are written as files first, for the commands that read files. The commands use a
GPU if there is one.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from PIL import Image

from amdim_fast.data.datasets import load_digits
from amdim_fast.data.image_sets import TensorImages

FILES_PER_CLASS = 3
MIXTURE_STEPS = 60


def write_digits(folder: Path) -> list[str]:
    """Test images as PNG files, one folder per class; their paths."""
    test = load_digits().test
    assert isinstance(test, TensorImages)
    paths: list[str] = []
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for image in test.images[test.labels == label][:FILES_PER_CLASS]:
            paths.append(str(folder / str(label) / f"{len(paths)}.png"))
            Image.fromarray(image.numpy()).save(paths[-1])
    return paths


def commands(
    folder: Path, probe_epochs: int, device: str | None, options: list[str]
) -> Iterator[list[str]]:
    """The arguments of each command; what a command writes, later ones read."""
    files = write_digits(folder / "digits")
    where = [] if device is None else [f"--device={device}"]
    pretrain = ["pretrain", "--recipe=digits", f"--runs-dir={folder}", *where]
    checkpoint, mixture = (str(folder / run / "checkpoint.pt") for run in ("run", "mixture"))
    evaluate = ["evaluate", checkpoint, "--data=digits", f"--probe-epochs={probe_epochs}"]
    steps = [] if any(o.startswith("--steps") for o in options) else [f"--steps={MIXTURE_STEPS}"]
    yield ["info"]
    yield ["bench", "--seconds=10", "--dim=64", f"--out={folder / 'bench'}", *where]
    yield ["views", *files[:5], "--policy=digits", f"--out={folder / 'views.png'}"]
    yield ["pack", str(folder / "digits"), str(folder / "packed")]
    yield [*pretrain, "--name=run", *options]
    yield [*evaluate, f"--out={folder / 'evaluation'}", *where]
    yield ["embed", checkpoint, str(folder / "digits"), str(folder / "features.npz"), *where]
    yield ["export", checkpoint, str(folder / "encoder")]
    yield ["info", str(folder / "encoder")]
    yield [*pretrain, "--name=mixture", "--mixture=4", "--no-baselines", *options, *steps]
    yield ["segment", mixture, *files[::4], f"--out-dir={folder / 'segments'}", *where]


def main(arguments: list[str] | None = None) -> int:
    """Run the commands, each shown before it runs; the status of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description="The digits recipe through every command.")
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    parser.add_argument("--folder", type=Path, default=Path("runs") / f"demo-{now}")
    parser.add_argument("--probe-epochs", type=int, default=30, help="of evaluate")
    parser.add_argument("--device", help="of the commands that take one; a GPU if there is one")
    parsed, options = parser.parse_known_args(arguments)
    if parsed.folder.exists():
        parser.error(f"{parsed.folder} exists; name another --folder")
    for command in commands(parsed.folder, parsed.probe_epochs, parsed.device, options):
        print(f"\n$ amdim-fast {shlex.join(command)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "amdim_fast", *command], check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
