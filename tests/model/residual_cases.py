"""Rows of residual layers, and what they are in float64."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from amdim_fast.model.residual.op import residual_layers
from tests.nce.cases import DEVICE


class Row(NamedTuple):
    """Sizes of a row of layers."""

    images: int
    side: int
    channels: int
    out_channels: int
    kernel: int
    stride: int
    layers: int
    projects: bool = False  # the first shortcut is a convolution


ROWS = {
    "1x1": Row(3, 5, 6, 6, 1, 1, 2),
    "4x4, stride 2": Row(2, 10, 3, 5, 4, 2, 3),
    "2x2, stride 2, a row is left over": Row(2, 7, 4, 6, 2, 2, 2),
    "3x3": Row(2, 7, 4, 7, 3, 1, 2),
    "3x3 covers the map": Row(4, 3, 4, 6, 3, 1, 1),
    "1x1, more channels": Row(2, 4, 3, 5, 1, 1, 2),
    "more pixels and channels than a program has": Row(3, 12, 66, 130, 4, 2, 1),
    "one pixel": Row(1, 1, 2, 2, 1, 1, 1),
    "a head": Row(2, 5, 6, 4, 1, 1, 1, projects=True),
    "a head, then 1x1": Row(8, 5, 12, 12, 1, 1, 2, projects=True),
    "3x3 covers the map, fewer channels": Row(4, 3, 6, 4, 3, 1, 1, projects=True),
    # Channels that the products with an epilogue take.
    "1x1, whole units": Row(3, 5, 24, 24, 1, 1, 3),
    "4x4, stride 2, whole units": Row(2, 10, 3, 136, 4, 2, 3),
    "a head, whole units": Row(3, 5, 16, 8, 1, 1, 1, projects=True),
}
# Eager low precision rounds at other places; a few of its units in the last place.
MARGIN = 1.2


def draw(row, dtype, weight_dtype=None, seed=0):
    """x, weights of the first, second and shortcut convolutions, and a gradient of the result."""
    generator = torch.Generator().manual_seed(seed)

    def new(*shape, scale=1.0, of=dtype):
        value = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        value = value.to(dtype).to(of).to(DEVICE, memory_format=torch.channels_last)
        return value.requires_grad_()

    out, wide = row.out_channels, row.kernel**2 * row.channels
    of = weight_dtype or dtype
    conv1 = [new(out, row.channels, row.kernel, row.kernel, scale=wide**-0.5, of=of)]
    conv1 += [new(out, out, 1, 1, scale=out**-0.5, of=of) for _ in range(row.layers - 1)]
    conv2 = [new(out, out, 1, 1, scale=out**-0.5, of=of) for _ in range(row.layers)]
    shortcut = []
    if row.projects:
        shortcut = [new(*conv1[0].shape, scale=wide**-0.5, of=of)]
        shortcut += [new(1, out, 1, 1, of=of).detach().flatten().requires_grad_()]
    side = (row.side - row.kernel) // row.stride + 1
    x = new(row.images, row.channels, row.side, row.side)
    return x, conv1, conv2, shortcut, new(row.images, out, side, side).detach()


def written_out(x, conv1, conv2, projection, stride):
    """The layers by functions alone; the pool is a mean of windows."""
    for number, (first, second) in enumerate(zip(conv1, conv2, strict=True)):
        step, kernel = (1 if number else stride), first.shape[-1]
        branch = F.conv2d(F.conv2d(x, first, stride=step).relu(), second)
        if projection and not number:
            x = branch + F.conv2d(x, *projection, stride=step)
            continue
        pooled = x.unfold(2, kernel, step).unfold(3, kernel, step).mean((-2, -1))
        shortcut = torch.zeros_like(branch)
        shortcut[:, : x.shape[1]] = pooled
        x = branch + shortcut
    return x


def results(function, tensors, grad):
    """The result and all gradients."""
    out = function(*tensors)
    flat = [tensors[0], *tensors[1], *tensors[2], *tensors[3]]
    return [out.detach(), *torch.autograd.grad(out, flat, grad)]


def truth(row, x, *lists_and_grad):
    """Results in float64."""
    wide = x.detach().double().requires_grad_()
    *lists, grad = lists_and_grad
    weights = [[w.detach().double().requires_grad_() for w in part] for part in lists]
    return results(lambda *t: written_out(*t, row.stride), (wide, *weights), grad.double())


def ours(row, *tensors, **options):
    """Results of the op."""
    *inputs, grad = tensors
    return results(lambda *t: residual_layers(*t, stride=row.stride, **options), inputs, grad)


def errors(found, right):
    """Relative error of each result, in the Frobenius norm."""
    return [
        float((value.double() - expected).norm() / expected.norm().clamp(min=1e-30))
        for value, expected in zip(found, right, strict=True)
    ]
