"""A new run that begins with the weights of a file."""

from __future__ import annotations

import os

from amdim_fast.checkpoints.formats import CheckpointError
from amdim_fast.checkpoints.reading import read_model
from amdim_fast.model.amdim import AMDIM

# What an encoder is, under the names of hyperparams, and the option that sets it.
_OPTIONS = {
    "encoder_size": "--policy or --size",
    "backbone": "--backbone",
    "ndf": "--ndf",
    "n_rkhs": "--n-rkhs",
    "n_depth": "--depth",
    "use_bn": "--use-bn",
    "in_channels": "--channels",
}


def load_initial(model: AMDIM, path: str | os.PathLike[str]) -> str:
    """Give a model the encoder's weights of a file and, if both have them, those of its components.

    Probes keep the weights that they have, and so does whatever else the file holds.

    Args:
        model: its encoder must be as the file's.
        path: of a checkpoint or an export, as for ``AMDIM.from_pretrained``.

    Returns:
        A phrase: what has been loaded, and what starts anew.

    Raises:
        FileNotFoundError: there is no such file. CheckpointError: it is damaged, or its encoder is
            another; names what differs.
    """
    other = AMDIM.from_stored(read_model(path))
    differing = _differences(model, other)
    if differing:
        raise CheckpointError(f"{path} has another encoder than this run: {'; '.join(differing)}")
    model.encoder.load_state_dict(other.encoder.state_dict())
    if model.mixture is None:
        return f"the encoder's of {path}"
    if other.mixture is None:
        return f"the encoder's of {path}; components start anew"
    found, own = other.mixture.state_dict(), model.mixture.state_dict()
    wrong = [
        f"mixture.{name} is {list(value.shape)}, here {list(own[name].shape)}"
        for name, value in found.items()
        if value.shape != own[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} has {other.mixture.components} components and this run"
            f" {model.mixture.components} ({'; '.join(wrong)}); give --mixture as there"
        )
    model.mixture.load_state_dict(found)
    return f"the encoder's and the components' of {path}"


def _differences(model: AMDIM, other: AMDIM) -> list[str]:
    """One phrase for each thing in which the encoders differ."""
    here, there = model.hyperparams, other.hyperparams
    if here.get("backbone") == there.get("backbone"):
        names = [name for name in _OPTIONS if here.get(name) != there.get(name)]
    else:
        names = ["backbone"]
    return [
        f"{name} is {there.get(name)}, here {here.get(name)}"
        + (f" ({_OPTIONS[name]})" if _OPTIONS[name] else "")
        for name in names
    ]
