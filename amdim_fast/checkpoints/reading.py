"""Reading any file of a model into a ``StoredModel``."""

from __future__ import annotations

import os
from pathlib import Path

from amdim_fast.checkpoints.export_config import CONFIG
from amdim_fast.checkpoints.exports import read_export
from amdim_fast.checkpoints.formats import (
    CheckpointError,
    find_state,
    model_arguments,
    plain_state,
    stated_arguments,
    stated_class_names,
)
from amdim_fast.checkpoints.history import updated
from amdim_fast.checkpoints.stored_model import StoredModel
from amdim_fast.checkpoints.torch_files import read_checkpoint


def read_model(path: str | os.PathLike[str]) -> StoredModel:
    """The model of an export (its folder or a file in it) or of a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or not of an AMDIM.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a checkpoint file or the folder of an export"
        )
    if path.is_dir() or path.suffix == ".safetensors" or path.name == CONFIG:
        return read_export(path)
    return read_checkpoint_model(path)


def read_checkpoint_model(path: str | os.PathLike[str]) -> StoredModel:
    """The model of a checkpoint: ours, the public code's or lightning-bolts'.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or not of an AMDIM.
    """
    path = Path(path)
    contents = read_checkpoint(path)
    state, implied = updated(plain_state(find_state(contents, path), path), path)
    try:
        arguments = model_arguments(implied | stated_arguments(contents, path), state, path)
    except KeyError as error:
        raise CheckpointError(
            f"{path} has no weight {error.args[0]!r}; it is not an AMDIM of 32, 64 or 128 px"
        ) from error
    except (IndexError, ZeroDivisionError):
        raise CheckpointError(f"{path} has weights of shapes that fit no AMDIM") from None
    recipe, step = contents.get("recipe"), contents.get("step")
    recipe = recipe if isinstance(recipe, dict) else {}
    step = step if isinstance(step, int) else None
    for what in ("name", "policy"):
        if not isinstance(recipe.get(what), str | None):
            kind = type(recipe[what]).__name__
            raise CheckpointError(f"{path} has a {kind} for the recipe's {what}; it must be text")
    names, classes = stated_class_names(contents, path), arguments["n_classes"]
    if names is not None and len(names) != classes:
        raise CheckpointError(f"{path} names {len(names)} classes for probes of {classes}")
    return StoredModel(
        source=path,
        arguments=arguments,
        state=state,
        provenance={"recipe": recipe.get("name"), "step": step},
        policy=recipe.get("policy"),
        own_size=bool(recipe.get("size")),
        class_names=names,
    )
