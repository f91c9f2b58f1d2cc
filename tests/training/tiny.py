"""The tiny run of the tests; as a script, ``amdim-fast pretrain`` of it: python tiny.py FLAGS."""

import functools
import re
import sys
import time
from dataclasses import replace

from amdim_fast.cli.main import main
from amdim_fast.data.datasets import LOADERS, ImageData, load_digits
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.training.recipes import RECIPES

TINY = replace(RECIPES["digits"], ndf=4, n_rkhs=16, depth=1, batch_size=16, steps=4, warmup_steps=2)
# In a type that every CPU has, and as flags.
SMALL = replace(TINY, precision="float32")
SMALL_FLAGS = ("--ndf=4", "--n-rkhs=16", "--depth=1", "--batch-size=16", "--steps=3")
# Long enough to be stopped, with every kind of checkpoint.
SIXTY_STEPS = replace(
    TINY,
    steps=60,
    warmup_steps=5,
    milestones=(1, 2),
    log_every=3,
    checkpoint_every=4,
    keep_every=10,
    baselines=False,
)


@functools.cache
def few_digits(_root=None, _download=False):
    """Every tenth digit, so that probes and epochs take no time."""
    data = load_digits()
    train, test = (TensorImages(p.images[::10], p.labels[::10]) for p in (data.train, data.test))
    return ImageData(train, train, test, data.classes)


def wait_for_step(process, log, step, seconds=240):
    """Wait until the log of a run has that step; False if the process ends before."""
    until = time.monotonic() + seconds
    while process.poll() is None:
        assert time.monotonic() < until, f"no step {step} in {log}"
        lines = log.read_text().splitlines() if log.exists() else []
        steps = [int(f[1]) for line in lines if (f := re.match(r'{"step": (\d+),', line))]
        if steps and steps[-1] >= step:
            return True
        time.sleep(0.005)
    return False


def run(arguments):
    LOADERS["digits"] = few_digits
    RECIPES["digits"] = SIXTY_STEPS
    return main(["pretrain", "--device=cpu", *arguments])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
