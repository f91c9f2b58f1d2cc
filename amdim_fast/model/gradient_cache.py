"""Encoding a batch in micro-batches, with the gradients of a loss on all of its features.

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
    """Features of a batch without a graph, which is made later, a micro-batch at a time.

        encoding = CachedEncoding(encoder, (x1, x2), 64)
        loss(*encoding.features).backward()     # and parameters of the loss's side
        encoding.backward()                     # the encoder's parameters

    Equals encoding every micro-batch with its graph, concatenating, and ``loss.backward()``, in the
    memory of one micro-batch's graph and of all features with their gradients; it costs a second
    forward of the encoder. Each view is split evenly: into as few micro-batches as ``micro_batch``
    allows, whose sizes differ by 1 at most. BatchNorm in training normalises by the statistics of
    each micro-batch, which are those of the batch only if there is one; its running statistics are
    updated once for each, in order. Whatever the encoder draws from torch's default generators it
    draws again; the views are the same tensors.

    Args:
        encoder: x -> EncoderOutput. Under DistributedDataParallel only the last of the backwards
            reduces gradients; the others run in its ``no_sync()``.
        views: of the same B images, [B, ...] each; not to be changed until ``backward`` is done.
        micro_batch: images an encoder call has at most.

    Raises:
        ValueError: micro_batch is below 1, or whatever the encoder raises: ``Encoder`` refuses one
            image while BatchNorm is training.

    Attributes:
        features: one EncoderOutput a view, leaves of the graph; gone after ``backward``.

    Autocast is, in both passes, as where this was made, but without its cache of weights.
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
        # A weight that no_grad has cast and cached would pass no gradient on in the second pass.
        with torch.autocast(self._device.type, dtype, enabled=enabled, cache_enabled=False):
            return self._encoder(images)

    def backward(self) -> None:
        """Add the gradients of the encoder's parameters, from those that ``features`` have.

        Raises:
            RuntimeError: a feature has no gradient, or this was called before.
        """
        gradients = [[part.grad for part in features] for features in self.features]
        if not gradients or any(part is None for parts in gradients for part in parts):
            raise RuntimeError(
                "the features have no gradients; call backward of a loss of all of them first, and"
                " this once"
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
    """Space for the features of all images."""
    return torch.empty(
        (images, *part.shape[1:]),
        dtype=part.dtype,
        device=part.device,
        memory_format=torch.channels_last,
    )
