"""Training the linear and the MLP probe on stored features, on the original's schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amdim_fast.checks import whole_number
from amdim_fast.data.progress import progress_bar
from amdim_fast.model.probes import Probes, probe_loss


@dataclass(frozen=True)
class ProbeSchedule:
    """Adam with betas (0.8, 0.999), weight decay 1e-5, eps 1e-8, and a rate that drops in steps.

    Attributes:
        epochs: passes over the training features.
        milestones: epochs from which the rate is multiplied by 0.2.
        learning_rate: the rate before the first milestone.
        batch_size: features per step; an incomplete last batch is dropped.

    Source: the public code's ``task_classifiers``.
    """

    epochs: int = 120
    milestones: tuple[int, ...] = (80, 110)
    learning_rate: float = 2e-4
    batch_size: int = 200

    def __post_init__(self) -> None:
        whole_number("epochs", self.epochs)
        whole_number("batch_size", self.batch_size, least=2)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate!r}; it must be above 0")
        if any(milestone < 1 for milestone in self.milestones):
            raise ValueError(f"milestones are {self.milestones}; each must be an epoch, 1 or more")

    def scaled(self, epochs: int) -> ProbeSchedule:
        """The same schedule stretched to another number of epochs, milestones included."""
        share = epochs / self.epochs
        milestones = tuple(max(1, round(milestone * share)) for milestone in self.milestones)
        return replace(self, epochs=epochs, milestones=milestones)


# By data set; all others use the defaults, which the original has for CIFAR and STL-10.
SCHEDULES = {
    "imagenet": ProbeSchedule(epochs=30, milestones=(15, 25)),
    "places205": ProbeSchedule(epochs=15, milestones=(7, 12)),
}


def train_probes(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    schedule: ProbeSchedule,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Probes:
    """Both probes, trained together on the sum of their losses, in evaluation mode.

    Here the features are fixed: one view of each image, encoded in evaluation mode. The public code
    encodes a new random view of each image in training mode in every epoch.

    Args:
        features: [N, D].
        labels: int64 [N].
        n_classes: number of classes.
        schedule: epochs, learning rate and batch size.
        seed: seed of weights, dropout and order. The default generators are left as they were.
        device: where the probes are trained and stay.
        progress: whether to show a bar.

    Raises:
        ValueError: there are fewer than two features.

    Deterministic for a seed, device, library versions and number of threads.
    """
    if len(features) < 2:
        raise ValueError(
            f"there are {len(features)} labeled training images; there must be 2 or more"
        )
    device = torch.device(device)
    size = min(schedule.batch_size, len(features))
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        probes = Probes(features.shape[1], n_classes)
        # The public code resets this one; all else starts at PyTorch's defaults, there too.
        torch.nn.init.uniform_(probes.get_parameter("block_glb_mlp.block_forward.3.weight"))
        probes.to(device)
        optimizer = torch.optim.Adam(
            probes.parameters(), lr=schedule.learning_rate, betas=(0.8, 0.999), weight_decay=1e-5
        )
        rate = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(schedule.milestones), gamma=0.2)
        epochs = range(schedule.epochs)
        for _ in progress_bar(iterable=epochs, desc="probes", unit="epoch", shown=progress):
            for index in torch.randperm(len(features), generator=order).split(size):
                if len(index) < size:
                    break
                mlp, linear = probes(features[index].to(device))
                target = labels[index].to(device)
                loss = probe_loss(mlp, target) + probe_loss(linear, target)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            rate.step()
    return probes.eval()
