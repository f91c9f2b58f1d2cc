"""What a file says about a model, in plain values, from which ``AMDIM.from_stored`` builds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from amdim_fast.checkpoints.formats import CheckpointError
from amdim_fast.views.params import POLICIES
from amdim_fast.views.preprocessing import Preprocessing

# The public code has one policy per size; it uses ImageNet's for Places205 too.
POLICY_OF_SIZE = {32: "cifar", 64: "stl10", 128: "imagenet128"}


@dataclass(frozen=True)
class StoredModel:
    """A model as read from its file.

    Attributes:
        source: the file of its weights.
        arguments: those of ``AMDIM``.
        state: its state dict, under this package's names, on the CPU.
        provenance: recipe (a name), step and, for an export, versions and source; None for what
            the file does not state.
        preprocessing: from images to its input; stated by exports.
        policy: name of the policy it was trained with; stated by our checkpoints.
        own_size: whether its views had another size than the policy's.
        class_names: of the classes of its probes; stated by our checkpoints.
    """

    source: Path
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]
    provenance: dict[str, Any]
    preprocessing: Preprocessing | None = None
    policy: str | None = None
    own_size: bool = False
    class_names: tuple[str, ...] | None = None

    def check_fits(self, expected: Mapping[str, Tensor], hyperparams: Mapping[str, Any]) -> None:
        """Raise unless the weights are those of a model.

        Args:
            expected: the model's state dict; shapes are read, not values.
            hyperparams: the model's, for the message.

        Raises:
            CheckpointError: names the keys that do not fit.
        """
        found = self.state
        problems = {
            "missing": sorted(expected.keys() - found.keys()),
            "unexpected": sorted(found.keys() - expected.keys()),
            "of another shape": sorted(
                f"{name} {list(found[name].shape)} instead of {list(value.shape)}"
                for name, value in expected.items()
                if name in found and found[name].shape != value.shape
            ),
        }
        if any(problems.values()):
            named = "; ".join(f"{what}: {', '.join(k)}" for what, k in problems.items() if k)
            raise CheckpointError(
                f"{self.source} does not fit its hyperparameters {dict(hyperparams)}; {named}"
            )

    def preprocessing_for(self, policy: str | None = None) -> Preprocessing:
        """The named policy's, else the one that the file states, else the original's for the size.

        Raises:
            ValueError: there is no such policy, or it is for another size. CheckpointError: the one
                that the file states is so.
        """
        image = self.arguments["size"], self.arguments.get("in_channels", 3)
        if policy is None and self.preprocessing is not None:
            return self.preprocessing
        if policy in (None, self.policy) and self.policy is not None:
            try:
                return preprocessing_of(self.policy, *image, resized=self.own_size)
            except ValueError as error:
                raise CheckpointError(
                    f"{self.source} states a policy that cannot be: {error}; name another"
                ) from None
        return preprocessing_of(policy or POLICY_OF_SIZE.get(image[0], POLICY_OF_SIZE[128]), *image)


def preprocessing_of(
    policy: str, size: int, channels: int = 3, *, resized: bool = False
) -> Preprocessing:
    """The test-time transform of a policy, for an encoder of this size.

    Args:
        policy: name in ``POLICIES``.
        size: the encoder's, pixels. Where no policy has it, this one is brought to it.
        channels: of the images.
        resized: whether to bring the policy to the size in any case.

    Raises:
        ValueError: there is no such policy, or it is for another size than others are.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
    fitting = [name for name, other in POLICIES.items() if other.size == size]
    if POLICIES[policy].size != size and fitting and not resized:
        raise ValueError(
            f"policy {policy!r} makes views of {POLICIES[policy].size} px and the encoder takes"
            f" {size}; take {' or '.join(fitting)}"
        )
    return Preprocessing.of(POLICIES[policy].adapted(size=size, channels=channels))
