"""``TwoViews``: draw and make two views of each image, in one module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amdim_fast.views.augment import augment, drawn_views
from amdim_fast.views.compiled import check_backend
from amdim_fast.views.images import Picture, as_batch, as_pixels, sizes_of
from amdim_fast.views.params import POLICIES, ViewPolicy
from amdim_fast.views.sampling import check_policy, sample_view_params


class TwoViews(nn.Module):
    """Draw two views of each image and make them: uint8 images to [2, N, C, size, size].

    Equals ``augment(images, sample_view_params(policy, sizes), ...)`` with the size, mean and std
    of the policy, bit for bit. The seed is drawn from the CPU generator, even for images on a GPU,
    where parameters are drawn without a copy from the host. As a transform of a data
    set it takes one Pillow image, and gives [2, C, size, size]. C is the policy's number of
    channels, 3 in ``POLICIES``; ``ViewPolicy.adapted`` makes others.

    Args:
        policy: a ``ViewPolicy`` or the name of one in ``POLICIES``.
        dtype: float32, float16 or bfloat16.
        channels_last: as in ``augment``.
        backend: as in ``augment``.

    Raises:
        ValueError: ``POLICIES`` has no policy of that name. TypeError: it is neither.
    """

    def __init__(
        self,
        policy: ViewPolicy | str,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        backend: str = "compiled",
    ) -> None:
        super().__init__()
        if isinstance(policy, str):
            if policy not in POLICIES:
                raise ValueError(f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
            policy = POLICIES[policy]
        check_policy(policy)
        self.policy = policy
        self.dtype = dtype
        self.channels_last = channels_last
        self.backend = backend

    def forward(
        self,
        images: Picture | Sequence[Picture],
        *,
        generator: torch.Generator | None = None,
        sample_index: Tensor | None = None,
    ) -> Tensor:
        """Views of uint8 images; see ``augment`` and ``sample_view_params`` for the arguments.

        Images may also be NumPy arrays and Pillow images, and one image: [H, W, C], [C, H, W] or a
        Pillow image, whose views have no N.
        """
        batch = as_batch(images, self.policy.channels)
        pixels = as_pixels(batch.images, self.policy.channels)
        check_backend(self.backend)
        if self.backend == "compiled" and len(pixels):
            views = drawn_views(
                pixels,
                self.policy,
                dtype=self.dtype,
                channels_last=self.channels_last,
                generator=generator,
                sample_index=sample_index,
            )
            return views[:, 0] if batch.single else views
        params = sample_view_params(
            self.policy,
            sizes_of(pixels),
            generator=generator,
            sample_index=sample_index,
            backend=self.backend,
        )
        views = augment(
            pixels,
            params,
            size=self.policy.size,
            mean=self.policy.mean,
            std=self.policy.std,
            dtype=self.dtype,
            channels_last=self.channels_last,
            backend=self.backend,
        )
        return views[:, 0] if batch.single else views

    def extra_repr(self) -> str:
        """The policy."""
        return repr(self.policy)
