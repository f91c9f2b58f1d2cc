"""Exports for the tests: a small model's checkpoint, written as a run writes it, and its export."""

from dataclasses import asdict

import torch

from amdim_fast import AMDIM, export_encoder, save_checkpoint
from amdim_fast.training.recipes import RECIPES

CONFIG, WEIGHTS = "config.json", "encoder.safetensors"


def write_small_checkpoint(folder):
    """Its path; BatchNorms are not at their start."""
    model = AMDIM(32, 4, 8, 1, use_bn=True, n_classes=3)
    for _ in range(2):
        model.encoder(torch.randn(8, 3, 32, 32))
    path = folder / "checkpoint.pt"
    save_checkpoint(path, model, recipe=asdict(RECIPES["digits"]), step=7)
    return path


def write_small_export(folder):
    """Its folder."""
    export_encoder(write_small_checkpoint(folder), folder / "export")
    return folder / "export"
