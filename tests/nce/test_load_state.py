"""Strict loading of files whose loss had the public code's sampling masks."""

import pytest
import torch
from torch import nn

from amdim_fast import FeatureMapContrastiveTask, LossMultiNCE, MixtureNCELoss

MASKS = torch.eye(25, dtype=torch.uint8).view(25, 1, 5, 5)


@pytest.mark.parametrize("loss", [LossMultiNCE, MixtureNCELoss, FeatureMapContrastiveTask])
def test_masks_of_the_public_loss_are_left_out_and_nothing_else(loss):
    stored = {"masks_r5": MASKS}
    loss().load_state_dict(stored)
    assert list(stored) == ["masks_r5"]
    for other in ("masks_r7", "masks_r5.weight", "weight"):
        with pytest.raises(RuntimeError, match=f'Unexpected key.* "{other}"'):
            loss().load_state_dict({"masks_r5": MASKS, other: torch.zeros(1)})


def test_a_model_with_the_loss_swapped_loads_its_own_file():
    old = nn.ModuleDict({"encoder": nn.Linear(2, 3), "g2l_loss": nn.Module()})
    old["g2l_loss"].masks_r5 = nn.Parameter(MASKS, requires_grad=False)
    new = nn.ModuleDict({"encoder": nn.Linear(2, 3), "g2l_loss": LossMultiNCE()})
    new.load_state_dict(old.state_dict(), strict=True)
    assert torch.equal(new["encoder"].weight, old["encoder"].weight)
    with pytest.raises(RuntimeError, match=r'Unexpected key.* "masks_r5"'):
        new.load_state_dict({**new.state_dict(), "masks_r5": MASKS})
    with pytest.raises(RuntimeError, match=r'Unexpected key.* "encoder\.masks_r5"'):
        new.load_state_dict({**new.state_dict(), "encoder.masks_r5": MASKS})
