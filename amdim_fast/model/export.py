"""Export of a checkpoint's encoder, to share: safetensors with a JSON configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from amdim_fast.checkpoints.export_config import (
    ARCHITECTURE,
    BACKBONE_ARCHITECTURE,
    MIXTURE,
    ExportConfig,
)
from amdim_fast.checkpoints.exports import write_export
from amdim_fast.checkpoints.formats import CheckpointError
from amdim_fast.files import check_new_folder
from amdim_fast.model.amdim import AMDIM
from amdim_fast.model.encoder import Encoder
from amdim_fast.model.pretrained import Pretrained, read_pretrained
from amdim_fast.version import __version__


def export_encoder(
    checkpoint: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    policy: str | None = None,
) -> ExportConfig:
    """Write the encoder of a checkpoint, for ``AMDIM.from_pretrained``.

    The folder holds ``encoder.safetensors`` and ``config.json``: architecture, test-time
    preprocessing, SHA-256 of the weights, versions, recipe and step. The head that makes components
    is exported too; the probes and the optimizer are not.

    Args:
        checkpoint: a file of this package, of the public code or of lightning-bolts.
        out_dir: folder to create; it takes its name once all of it is on disk.
        policy: as in ``AMDIM.from_pretrained``.

    Returns:
        The contents of ``config.json``.

    Raises:
        FileExistsError: out_dir exists. FileNotFoundError: the checkpoint, or the folder that
            out_dir goes into, does not exist. CheckpointError: the checkpoint cannot be read.
        ValueError: there is no such policy, or it is for another size.

    Holds the weights in memory twice.
    """
    target = Path(out_dir)
    check_new_folder(target)
    model, preprocessing, provenance = read_for_export(checkpoint, policy)
    names = ARCHITECTURE if isinstance(model.encoder, Encoder) else BACKBONE_ARCHITECTURE
    return write_export(
        target,
        model.state_dict(),
        architecture={name: getattr(model.encoder, name) for name in names},
        preprocessing=preprocessing,
        provenance=described(checkpoint, provenance),
        mixture=None if model.mixture is None else _mixture_arguments(model),
    )


def read_for_export(checkpoint: str | os.PathLike[str], policy: str | None) -> Pretrained:
    """``read_pretrained`` of a checkpoint's file; CheckpointError says that it is a folder."""
    if Path(checkpoint).is_dir():
        raise CheckpointError(f"{checkpoint} is a folder; give the checkpoint file in it")
    return read_pretrained(checkpoint, policy=policy)


def described(checkpoint: str | os.PathLike[str], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Where an export comes from, for its ``config.json``."""
    return {
        "source": Path(checkpoint).name,
        "recipe": provenance.get("recipe"),
        "step": provenance.get("step"),
        "amdim_fast": __version__,
        "torch": torch.__version__,
    }


def _mixture_arguments(model: AMDIM) -> dict[str, Any]:
    values: dict[str, Any] = {name: model.hyperparams[name] for name in MIXTURE}
    whole = ("components", "mixture_hidden")
    return {
        name: value if value is None or name in whole else float(value)
        for name, value in values.items()
    }
