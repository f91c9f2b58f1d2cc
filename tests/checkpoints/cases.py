"""Files of the original, small models and their comparison."""

import re
from pathlib import Path

import numpy as np
import torch

from amdim_fast.model.amdim import AMDIM

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = (32, 64, 128)


def golden_file(size=32):
    return torch.load(GOLDEN / f"amdim_public_{size}.pth", weights_only=True)


def rename(state, *changes):
    """A state dict with regular expressions replaced in its names; None drops the name."""
    for pattern, new in changes:
        if new is None:
            state = {name: value for name, value in state.items() if not re.search(pattern, name)}
        else:
            state = {re.sub(pattern, new, name): value for name, value in state.items()}
    return state


def written(folder, contents, **options):
    path = folder / "file.pth"
    torch.save(contents, path, **options)
    return path


def assert_golden(model, size, probes=True):
    data = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"encoder_{size}.npz").items()}
    model.eval()
    with torch.no_grad():
        outputs = dict(model.encoder(data["x"])._asdict())
        if probes:
            outputs.update(model.evaluator(outputs["r1"])._asdict())
    for name, value in outputs.items():
        assert (value - data[name]).abs().max() < 1e-6, name


def small_model(**arguments):
    torch.manual_seed(0)
    return AMDIM(**{"size": 32, "ndf": 2, "n_rkhs": 6, "depth": 2, **arguments})


def same_state(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
