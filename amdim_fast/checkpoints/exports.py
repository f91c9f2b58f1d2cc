"""Exports: folders with ``config.json`` and the safetensors file that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from amdim_fast.checkpoints.export_config import CONFIG, WEIGHTS, ExportConfig
from amdim_fast.checkpoints.formats import CheckpointError, model_arguments
from amdim_fast.checkpoints.stored_model import StoredModel
from amdim_fast.checkpoints.weights import check_weights
from amdim_fast.files import folder_written_whole, sha256_of
from amdim_fast.views.preprocessing import Preprocessing

# In an export the encoder's weights have no prefix; in an AMDIM they have.
_ENCODER, _MIXTURE = "encoder.", "mixture."


def write_export(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    architecture: dict[str, Any],
    preprocessing: Preprocessing,
    provenance: dict[str, Any],
    mixture: dict[str, Any] | None,
) -> ExportConfig:
    """Write an export; the folder takes its name once all of it is on disk.

    Args:
        folder: to create.
        state: state dict of an AMDIM; the probes in it are left out.
        architecture: as in ``ExportConfig``, like the rest.
        preprocessing: from uint8 images to the encoder's input.
        provenance: where the weights come from.
        mixture: arguments for the components, or None.

    Returns:
        The contents of ``config.json``.

    Raises:
        OSError: the folder exists, or cannot be written; nothing is left behind.
    """
    from safetensors.torch import save

    weights = save(
        {
            name.removeprefix(_ENCODER): value.contiguous()
            for name, value in state.items()
            if name.startswith((_ENCODER, _MIXTURE))
        }
    )
    config = ExportConfig(
        architecture=architecture,
        preprocessing=preprocessing,
        weights=WEIGHTS,
        sha256=hashlib.sha256(weights).hexdigest(),
        provenance=provenance,
        mixture=mixture,
    )
    with folder_written_whole(folder) as new:
        (new / WEIGHTS).write_bytes(weights)
        (new / CONFIG).write_text(config.to_json(), encoding="utf-8")
    return config


def read_export(path: Path) -> StoredModel:
    """The model of an export.

    Args:
        path: its folder, or a file in it.

    Raises:
        FileNotFoundError: a file of it is missing. CheckpointError: one is damaged, or the weights
            are not those of the configuration.
    """
    folder = path if path.is_dir() else path.parent
    config = ExportConfig.read(folder / CONFIG)
    file = folder / config.weights
    if path.suffix == ".safetensors" and path.name != config.weights:
        raise CheckpointError(f"{folder / CONFIG} belongs to {config.weights}, not to {path.name}")
    if not file.is_file():
        raise FileNotFoundError(f"{file}, which {CONFIG} names, does not exist; copy it there")
    state = {
        name if name.startswith(_MIXTURE) else _ENCODER + name: value
        for name, value in _read_weights(file, config.sha256).items()
    }
    check_weights(state, file)
    stated = config.architecture | (config.mixture or {"components": None})
    try:
        arguments = model_arguments(stated, state, folder / CONFIG)
    except (KeyError, IndexError, ZeroDivisionError):
        raise CheckpointError(f"{file} holds no AMDIM encoder; export it again") from None
    return StoredModel(
        source=file,
        arguments=arguments,
        state=state,
        provenance=config.provenance,
        preprocessing=config.preprocessing,
    )


def _read_weights(file: Path, sha256: str) -> dict[str, Tensor]:
    # Imported here: pre-training reads no export and runs where safetensors is not installed.
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if sha256_of(file) != sha256:
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 is not the one in {CONFIG}; copy it again"
        )
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file ({error})") from None
