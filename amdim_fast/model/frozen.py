"""A frozen encoder: how it runs, and features of images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from amdim_fast.devices import describe_device
from amdim_fast.model.backbone import AnyEncoder
from amdim_fast.model.replay import eval_mode
from amdim_fast.views.compiled import views_device
from amdim_fast.views.images import Picture
from amdim_fast.views.preprocessing import Preprocessing


def frozen_facts(encoder: AnyEncoder) -> dict[str, str]:
    """How a frozen encoder runs, for ``execution_line``."""
    weight = encoder.rkhs_block_5.conv1.weight
    made = views_device(weight.device)
    return {
        "device": describe_device(weight.device),
        "precision": str(weight.dtype).removeprefix("torch."),
        "views": "compiled" if made == weight.device else f"compiled, on the {made}",
        "encoder": encoder.backend_for(weight.dtype, weight.device),
        "execution": "eager",
    }


def encode(
    encoder: AnyEncoder, images: Picture | Sequence[Picture], preprocessing: Preprocessing | None
) -> Tensor:
    """Global features of images, in evaluation mode and without gradients.

    Args:
        encoder: its submodules are left in the modes that they had.
        images: as in ``center_view``, or normalized floating point
            [N, in_channels, size, size]; one image is [in_channels, size, size].
        preprocessing: for uint8 images.

    Returns:
        [N, D], dtype and device of the encoder; [D] of one image.

    Raises:
        ValueError: a shape is wrong, or uint8 images come without ``preprocessing``.
        TypeError: images are neither uint8 nor of the encoder's dtype.
    """
    weight = encoder.rkhs_block_5.conv1.weight
    if isinstance(images, Tensor) and images.is_floating_point():
        x = images.to(weight.device)
    elif preprocessing is None:
        raise ValueError(
            "the model has no preprocessing for uint8 images; set model.preprocessing, such as to"
            f" Preprocessing.of(POLICIES['cifar'].adapted(size={encoder.size},"
            f" channels={encoder.in_channels})), or give normalized floats"
        )
    else:
        x = preprocessing(images).to(weight.device, weight.dtype)
    single = x.dim() == 3
    with eval_mode(encoder):
        features = encoder(x[None] if single else x).r1.flatten(1)
    return features[0] if single else features
