"""A tiny pre-training run as a process of its own: python run_digits.py RUNS_DIR [RUN]."""

import sys
from dataclasses import replace

from amdim_fast.cli.main import main
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.data.datasets import LOADERS, ImageData, load_digits
from amdim_fast.training.recipes import RECIPES

TINY = replace(
    RECIPES["digits"],
    ndf=4,
    n_rkhs=16,
    depth=1,
    batch_size=16,
    steps=60,
    warmup_steps=5,
    milestones=(1, 2),
    log_every=3,
    checkpoint_every=4,
    keep_every=10,
    baselines=False,
)


def few_digits(_root=None, _download=False):
    """Every tenth digit, so that probes and epochs take no time."""
    data = load_digits()
    train, test = (TensorImages(p.images[::10], p.labels[::10]) for p in (data.train, data.test))
    return ImageData(train, train, test, data.classes)


def run(arguments):
    LOADERS["digits"] = few_digits
    RECIPES["digits"] = TINY
    return main(["pretrain", *arguments])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
