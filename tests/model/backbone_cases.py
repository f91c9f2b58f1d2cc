"""A small convolutional network for backbones, and an AMDIM over it."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from amdim_fast import AMDIM, BackboneEncoder
from tests.model.gradient_cases import CLIP


class Maps(nn.Module):
    """Images of 32 px -> maps of 16, 8 and 4, with BatchNorm and dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(n, n + 3, 3, 2, 1) for n in (3, 6, 9))
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (6, 9, 12))
        self.dropout = dropout

    def forward(self, x):
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.dropout(F.relu(norm(conv(x))), self.dropout, self.training)
            found.append(x)
        return found


def make_over(dtype=torch.float64, frozen=False, dropout=0.0, **options):
    """As ``gradient_cases.make_model``, over ``Maps``."""
    torch.manual_seed(1)
    model = AMDIM.over(BackboneEncoder(Maps(dropout), 32, 12), tclip=CLIP, **options)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.train(not frozen)
    return model.to(dtype)
