"""Saving and loading models: checkpoints, and whatever ``AMDIM.from_pretrained`` reads."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from amdim_fast.checkpoints.formats import CheckpointError
from amdim_fast.checkpoints.reading import read_checkpoint_model, read_model
from amdim_fast.checkpoints.torch_files import write_checkpoint
from amdim_fast.model.amdim import AMDIM
from amdim_fast.views.preprocessing import Preprocessing


class Pretrained(NamedTuple):
    """A model and what its file says about it.

    Attributes:
        model: an AMDIM; its ``preprocessing`` is the one here.
        preprocessing: from images to its input.
        provenance: see ``StoredModel``.
    """

    model: AMDIM
    preprocessing: Preprocessing
    provenance: dict[str, Any]


def load_pretrained(
    path: str | os.PathLike[str],
    map_location: str | torch.device = "cpu",
    *,
    policy: str | None = None,
) -> AMDIM:
    """``AMDIM.from_pretrained``: the model of an export or a checkpoint, ready for ``encode``."""
    return AMDIM.from_pretrained(path, map_location, policy=policy)


def read_pretrained(
    path: str | os.PathLike[str],
    map_location: str | torch.device = "cpu",
    *,
    policy: str | None = None,
) -> Pretrained:
    """As ``AMDIM.from_pretrained``, with what the file says about the model's origin."""
    stored = read_model(path)
    model = AMDIM.from_stored(stored, map_location)
    preprocessing = model.preprocessing = stored.preprocessing_for(policy)
    return Pretrained(model, preprocessing, stored.provenance)


def load_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu"
) -> AMDIM:
    """The model of a checkpoint, in training mode.

    Sizes that the file does not state are inferred from its weights: use_bn is then whether the
    blocks' BatchNorms have ever run, and tclip is 20. The model has probes if the file has their
    weights. Unlike in the public code, tclip and use_bn are honored. The default random generator
    is left as it was.

    Args:
        path: a file of ``save_checkpoint``, of the public code (old and new names, with or without
            hyperparameters) or of lightning-bolts; a bare state dict of a model or an encoder
            works too.
        map_location: device for the model.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint of an AMDIM; names the keys that do not fit.
    """
    return AMDIM.from_stored(read_checkpoint_model(path), map_location)


def save_checkpoint(path: str | os.PathLike[str], model: AMDIM, /, **extra: Any) -> None:
    """Write a model and whatever else a run needs to resume.

    The file holds ``model`` (the state dict), ``hyperparams``, ``class_names`` where the probes
    have them, and the extras under their names. It is written beside ``path``, flushed to disk and
    renamed, so ``path`` is always either the old file or the complete new one; if writing fails,
    nothing is left behind.

    Args:
        path: of the file; its folder must exist.
        model: the AMDIM itself, not a wrapper of it.
        extra: tensors, plain values, and lists, tuples and dicts of them, such as
            ``optimizer=optimizer.state_dict(), step=step``.

    Raises:
        TypeError: model is not an AMDIM.
        CheckpointError: an extra has a reserved name or a value that could not be read back.
        OSError: the file cannot be written.
    """
    if not isinstance(model, AMDIM):
        name = type(model).__name__
        raise TypeError(f"model is a {name}; it must be the AMDIM itself, such as wrapper.module")
    if reserved := {"model", "hyperparams", "class_names"} & extra.keys():
        raise CheckpointError(f"extra {reserved.pop()!r} has a reserved name; give it another")
    contents = {"model": model.state_dict(), "hyperparams": model.hyperparams, **extra}
    if model.evaluator is not None and model.evaluator.class_names is not None:
        contents["class_names"] = [str(name) for name in model.evaluator.class_names]
    write_checkpoint(path, contents)
