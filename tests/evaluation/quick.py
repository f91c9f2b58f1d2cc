"""Quick settings of an evaluation, and features without our extraction."""

import copy

import torch

from amdim_fast import EvaluationOptions
from amdim_fast.evaluation.probe_training import ProbeSchedule

QUICK = EvaluationOptions(k=5, schedule=ProbeSchedule(30, (20,), learning_rate=1e-2, batch_size=50))


def features_of(model, images):
    """r1 of a copy of the encoder, all images at once."""
    encoder = copy.deepcopy(model.encoder).eval()
    pixels = images.images.float().div(255).sub(0.5).div(0.5).permute(0, 3, 1, 2)
    with torch.no_grad():
        return encoder(pixels).r1[:, :, 0, 0]
