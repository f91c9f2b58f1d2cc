"""Encoders from files: an export's folder, our checkpoints, the original's and lightning-bolts'."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amdim_fast.checkpoints.checkpoint import load_checkpoint, read_checkpoint
from amdim_fast.checkpoints.export_config import CONFIG, ExportConfig
from amdim_fast.checkpoints.formats import CheckpointError, model_arguments
from amdim_fast.model.amdim import AMDIM
from amdim_fast.views.params import POLICIES
from amdim_fast.views.preprocessing import Preprocessing

MIXTURE_PREFIX = "mixture."
# The public code has one policy a size; ImageNet's serves Places205 too.
POLICY_OF_SIZE = {32: "cifar", 64: "stl10", 128: "imagenet128"}


class Pretrained(NamedTuple):
    """A model and what its file says of it.

    Attributes:
        model: an AMDIM; its ``preprocessing`` is the one here.
        preprocessing: how images become its input.
        provenance: recipe (a name), step, and, of an export, versions and source; None where the
            file does not say.
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
    """The model of an export or a checkpoint, which knows how images become its input.

    Args:
        path: the folder of an export, a file in it, or a checkpoint that ``load_checkpoint`` reads.
        map_location: device for the model.
        policy: name in ``POLICIES`` of the test-time transform; by default what the file says. A
            checkpoint without a recipe says nothing: then it is the original's for that size,
            cifar at 32, stl10 at 64, imagenet128 at 128.

    Returns:
        AMDIM in training mode, ``preprocessing`` set. An export holds the encoder and its
        components alone: the model has no probes and, without components, the loss's defaults.

    Raises:
        FileNotFoundError: there is no such file. CheckpointError: it is damaged, or of no AMDIM.
        ValueError: there is no such policy, or it is for another size.
    """
    return read_pretrained(path, map_location, policy=policy).model


def read_pretrained(
    path: str | os.PathLike[str],
    map_location: str | torch.device = "cpu",
    *,
    policy: str | None = None,
) -> Pretrained:
    """As ``load_pretrained``, with what the file says of its origin."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a checkpoint file or the folder of an export"
        )
    if path.is_dir() or path.suffix == ".safetensors" or path.name == CONFIG:
        model, preprocessing, provenance = _read_export(path, map_location)
        if policy is not None:
            preprocessing = preprocessing_of(policy, model.encoder.size)
    else:
        model = load_checkpoint(path, map_location)
        contents = read_checkpoint(path, "meta")
        recipe = contents.get("recipe")
        recipe = recipe if isinstance(recipe, dict) else {}
        step = contents.get("step")
        provenance = {
            "recipe": recipe.get("name"),
            "step": step if isinstance(step, int) else None,
        }
        policy = policy or recipe.get("policy") or POLICY_OF_SIZE[model.encoder.size]
        preprocessing = preprocessing_of(policy, model.encoder.size)
    model.preprocessing = preprocessing
    return Pretrained(model, preprocessing, provenance)


def preprocessing_of(name: str, size: int) -> Preprocessing:
    """The test-time transform of a policy, for an encoder of this size.

    Raises:
        ValueError: there is no such policy, or it is for another size.
    """
    if name not in POLICIES:
        raise ValueError(f"policy is {name!r}; it must be one of {', '.join(POLICIES)}")
    if POLICIES[name].size != size:
        fitting = [key for key, policy in POLICIES.items() if policy.size == size]
        raise ValueError(
            f"policy {name!r} makes views of {POLICIES[name].size} px and the encoder takes {size};"
            f" take {' or '.join(fitting)}"
        )
    return Preprocessing.of(POLICIES[name])


def _read_export(
    path: Path, map_location: str | torch.device
) -> tuple[AMDIM, Preprocessing, dict[str, Any]]:
    folder = path if path.is_dir() else path.parent
    config = ExportConfig.read(folder / CONFIG)
    file = folder / config.weights
    if path.suffix == ".safetensors" and path.name != config.weights:
        raise CheckpointError(f"{folder / CONFIG} is that of {config.weights}, not of {path.name}")
    if not file.is_file():
        raise FileNotFoundError(f"{file}, which {CONFIG} names, does not exist; copy it there")
    weights = _read_weights(file, config.sha256)
    state = {name: v for name, v in weights.items() if not name.startswith(MIXTURE_PREFIX)}
    head = {name: v for name, v in weights.items() if name.startswith(MIXTURE_PREFIX)}
    stored = config.architecture
    try:
        named = {f"encoder.{name}": value for name, value in state.items()}
        found = {name: model_arguments({}, named)[name] for name in stored if name != "use_bn"}
    except (KeyError, IndexError):
        raise CheckpointError(f"{file} holds no AMDIM encoder; export it anew") from None
    if found != {name: stored[name] for name in found}:
        raise CheckpointError(f"{file} is of {found}, but {CONFIG} says {stored}; export it anew")
    try:
        with torch.random.fork_rng(devices=[]):
            model = AMDIM(**stored, **(config.mixture or {}))
        model.encoder.load_state_dict(state)
        (model.mixture or nn.Identity()).load_state_dict(
            {name.removeprefix(MIXTURE_PREFIX): value for name, value in head.items()}
        )
    except (ValueError, RuntimeError) as error:
        problem = " ".join(str(error).split())
        raise CheckpointError(f"{file} does not fit its configuration: {problem}") from None
    return model.to(map_location), config.preprocessing, config.provenance


def _read_weights(file: Path, sha256: str) -> dict[str, Tensor]:
    # Imported here: pre-training reads no export and runs where safetensors is not installed.
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 is not the one in {CONFIG}; copy it again"
        )
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is no safetensors file ({error})") from None
