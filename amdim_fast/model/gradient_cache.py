"""Encoding a batch in micro-batches under a loss that needs the features of all of it.

Source: Gao, Zhang, Han, Callan 2021 (arXiv:2101.06983), "gradient cache".
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import pairwise, product

import torch
from torch import Tensor, nn

from amdim_fast.model.encoder import EncoderOutput
from amdim_fast.model.replay import BuffersKept, RandomState


class CachedEncoding:
    """Features of a batch, whose graph is built later, one micro-batch at a time.

        encoding = CachedEncoding(encoder, (x1, x2), 64)
        loss(*encoding.features).backward()     # gradients of the features and of the loss
        encoding.backward()                     # gradients of the encoder

    Gives the gradients of encoding every micro-batch with its graph, concatenating the features and
    calling ``loss.backward()``, but holds the graph of one micro-batch only, beside all features
    and their gradients. It costs a second forward of the encoder. Each view is split evenly into as
    few micro-batches as ``micro_batch`` allows; their sizes differ by at most 1. In training,
    BatchNorm normalizes by the statistics of each micro-batch, not of the batch, and updates its
    running statistics once per micro-batch, in order. The second forward repeats what the encoder
    drew from torch's default generators.

    Args:
        encoder: x -> EncoderOutput. Under DistributedDataParallel only the last micro-batch reduces
            gradients; the others run in its ``no_sync()``.
        views: of the same B images, [B, ...] each; leave them unchanged until ``backward`` is done.
        micro_batch: most images in one call of the encoder.

    Raises:
        ValueError: micro_batch is below 1. Also what the encoder raises: ``Encoder`` refuses a
            single image while BatchNorm is training.

    Attributes:
        features: one EncoderOutput per view, leaves of the graph; empty after ``backward``.

    Both passes use the autocast state of the constructor's caller, without autocast's weight cache.
    """

    def __init__(self, encoder: nn.Module, views: Sequence[Tensor], micro_batch: int) -> None:
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}; it must be 1 or more")
        self._encoder, self._views = encoder, tuple(views)
        images, self._device = len(self._views[0]), self._views[0].device
        kind = self._device.type
        self._autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        count = max(1, -(-images // micro_batch))
        edges = [number * images // count for number in range(count + 1)]
        self._slices = [slice(*pair) for pair in pairwise(edges)]
        self._states: list[RandomState] = []
        self.features = tuple(self._encode_whole(view) for view in self._views)

    def _encode_whole(self, view: Tensor) -> EncoderOutput:
        whole: list[Tensor] = []
        for rows in self._slices:
            self._states.append(RandomState(self._device))
            with torch.no_grad():
                found = self._encode(view[rows])
                whole = whole or [_room(len(view), part) for part in found]
                for room, part in zip(whole, found, strict=True):
                    room[rows] = part
        return EncoderOutput(*(part.requires_grad_() for part in whole))

    def _encode(self, images: Tensor) -> EncoderOutput:
        enabled, dtype = self._autocast
        # A weight cast and cached under no_grad would get no gradient in the second pass.
        with torch.autocast(self._device.type, dtype, enabled=enabled, cache_enabled=False):
            return self._encoder(images)

    def backward(self) -> None:
        """Add to the gradients of the encoder's parameters, given those of ``features``.

        Raises:
            RuntimeError: a feature has no gradient, or this was called before.
        """
        gradients = [[part.grad for part in features] for features in self.features]
        if not gradients or any(part is None for parts in gradients for part in parts):
            raise RuntimeError(
                "the features have no gradients; first call backward on a loss of all of them, and"
                " call this once"
            )
        self.features = ()
        runs = list(product(zip(self._views, gradients, strict=True), self._slices))
        no_sync = getattr(self._encoder, "no_sync", contextlib.nullcontext)
        with BuffersKept(self._encoder):
            for number, (((view, cached), rows), state) in enumerate(
                zip(runs, self._states, strict=True), start=1
            ):
                with contextlib.nullcontext() if number == len(runs) else no_sync():
                    with state.replayed():
                        found = self._encode(view[rows])
                    torch.autograd.backward(found, [part[rows] for part in cached])


def _room(images: int, part: Tensor) -> Tensor:
    """An empty channels_last tensor for the features of all images."""
    return torch.empty(
        (images, *part.shape[1:]),
        dtype=part.dtype,
        device=part.device,
        memory_format=torch.channels_last,
    )
