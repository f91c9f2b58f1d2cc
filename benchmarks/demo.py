"""What ``make demo`` runs: the digits recipe through every command of amdim-fast.

    python -m benchmarks.demo [--folder DIR] [--device cpu] [options of amdim-fast pretrain]

Images of digits are written as files first, for the commands that read files. The commands use a
GPU if there is one; they run in this process, so that torch is imported once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from PIL import Image

from amdim_fast.cli.main import main as amdim_fast
from amdim_fast.data.datasets import load_digits
from amdim_fast.data.image_sets import TensorImages

FILES_PER_CLASS = 3
# Fewer steps than the recipe's, with a larger rate that falls: as accurate, in half the time.
TRAINING = ("--steps=250", "--learning-rate=1e-3", "--warmup-steps=30", "--milestones", "7", "9")
MIXTURE = ("--steps=25", "--warmup-steps=3")


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
) -> Iterator[tuple[int, list[str]]]:
    """The share of each command in the time of all, and its arguments.

    What a command writes, later ones read.
    """
    files = write_digits(folder / "digits")
    where = [] if device is None else [f"--device={device}"]
    pretrain = ["pretrain", "--recipe=digits", f"--runs-dir={folder}", *where]
    checkpoint, mixture = (str(folder / run / "checkpoint.pt") for run in ("run", "mixture"))
    evaluate = ["evaluate", checkpoint, "--data=digits", f"--probe-epochs={probe_epochs}"]
    yield 1, ["info"]
    yield 6, ["bench", "--seconds=5", "--dim=64", f"--out={folder / 'bench'}", *where]
    yield 1, ["views", *files[:5], "--policy=digits", f"--out={folder / 'views.png'}"]
    yield 2, ["pack", str(folder / "digits"), str(folder / "packed")]
    yield 80, [*pretrain, "--name=run", *TRAINING, *options]
    yield 11, [*evaluate, f"--out={folder / 'evaluation'}", *where]
    yield 2, ["embed", checkpoint, str(folder / "digits"), str(folder / "features.npz"), *where]
    yield 1, ["export", checkpoint, str(folder / "encoder")]
    yield 1, ["info", str(folder / "encoder")]
    yield 12, [*pretrain, "--name=mixture", "--mixture=4", "--no-baselines", *MIXTURE, *options]
    yield 1, ["segment", mixture, *files[::4], f"--out-dir={folder / 'segments'}", *where]


def progress(number: int, seconds: float, shares: Sequence[int]) -> str:
    """Which command is next and, after the first, how long all that are left may take."""
    done, left = sum(shares[:number]), sum(shares[number:])
    time_left = f", about {seconds * left / done:.0f} s left" if done else ""
    return f"command {number + 1} of {len(shares)}{time_left}"


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
    shares, command_lines = zip(
        *commands(parsed.folder, parsed.probe_epochs, parsed.device, options), strict=True
    )
    start = time.monotonic()
    for number, command in enumerate(command_lines):
        print(f"\n{progress(number, time.monotonic() - start, shares)}")
        print(f"$ amdim-fast {shlex.join(command)}", flush=True)
        status = amdim_fast(command)
        if status:
            return status
    print(f"\nall {len(shares)} commands took {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
