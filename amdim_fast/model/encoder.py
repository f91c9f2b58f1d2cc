"""The AMDIM encoder: global and local features of an image, in channels_last throughout.

Source: arXiv:1906.00910, section 4.1, and the public code's ``model.Encoder``; the module names are
those of its checkpoints.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from amdim_fast.checks import whole_number
from amdim_fast.model.replay import BuffersKept
from amdim_fast.model.residual.modules import (
    BACKENDS,
    OptionalBatchNorm,
    ResidualBlock,
    ResidualConv,
    are_plain,
    as_row,
    chosen_backend,
    has_hooks,
    is_fused,
)

SIZES = (32, 64, 128)


class EncoderOutput(NamedTuple):
    """Features of B images at three scales; r5 and r7 are channels_last."""

    r1: Tensor  # [B, D, 1, 1]
    r5: Tensor  # [B, D, 5, 5]
    r7: Tensor  # [B, D, 7, 7]


class ConvReLU(nn.Module):
    """Convolution with bias, then ReLU; the input is padded by reflection."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        mode: Literal["reflect", "zeros"] = "reflect" if padding else "zeros"
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, padding_mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, H, W] -> [B, n_out, H', W']."""
        return F.relu(self.conv(x), inplace=True)


class RKHSHead(nn.Module):
    """Embeds local features: x -> BN(conv2(relu(bn(conv1(x)))) + shortcut(x)), all 1x1.

    conv2 starts at 0 and, if n_out >= n_in, the shortcut starts uniform in +-0.01 with ones on its
    diagonal.
    """

    def __init__(self, n_in: int, n_out: int, use_bn: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 1, bias=False)
        self.bn_hid = OptionalBatchNorm(n_out, use_bn)
        self.bn_out = OptionalBatchNorm(n_out, use_bn=True)
        self.shortcut = nn.Conv2d(n_in, n_out, 1)
        self.backend = "auto"
        nn.init.zeros_(self.conv2.weight)
        if n_out >= n_in:
            nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
            with torch.no_grad():
                self.shortcut.weight[:, :, 0, 0].fill_diagonal_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, H, W] -> [B, n_out, H, W]."""
        return self.bn_out(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """What ``bn_out`` normalizes."""
        convs = self.conv1, self.conv2, self.shortcut
        touched = self.bn_hid.use_bn or has_hooks(*convs, self.bn_hid) or not are_plain(*convs)
        if is_fused(self.backend, x) and not touched:
            return as_row(x, [self.conv1], [self.conv2], self.shortcut, backend=self.backend)
        hidden = F.relu(self.bn_hid(self.conv1(x)), inplace=True)
        return self.conv2(hidden) + self.shortcut(x)


def _stem(size: int, ndf: int, in_channels: int, use_bn: bool) -> list[nn.Module]:
    """The layers before the first strided block: maps of 30, 62 and 62 for 32, 64 and 128 px."""
    if size == 32:
        return [ConvReLU(in_channels, ndf, 3, 1, 0), ResidualConv(ndf, ndf, 1, 1, use_bn)]
    if size == 64:
        return [ConvReLU(in_channels, ndf, 3, 1, 0)]
    return [ConvReLU(in_channels, ndf, 5, 2, 2), ConvReLU(ndf, ndf, 3, 1, 0)]


def _checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, recomputed in backward without updating running statistics again."""
    if torch.compiler.is_compiling():  # its recomputation skips updates of buffers
        return checkpoint(layer, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), BuffersKept(layer)

    return checkpoint(layer, x, use_reentrant=False, context_fn=contexts)


class Encoder(nn.Module):
    """Encodes images of one size into a global feature and two maps of local features.

    r1 is the output of the last layer, a BatchNorm; r5 and r7 are heads on the last layers with
    5x5 and 7x7 maps, the latter after the optional BatchNorm. Parameters start as in the public
    code after its ``init_weights``: second convolutions of residual layers at zero, the rest at
    PyTorch's defaults. r1 and the outputs of the heads always have BatchNorm.

    Args:
        size: height and width of the images: 32, 64 or 128.
        ndf: width of the first layer; the widest hidden layer has 4 ndf (32 px) or 8 ndf.
        n_rkhs: D, width of the features. Below the widest hidden layer, the last shortcut is a
            convolution (``conv3``), as in the public code.
        depth: layers in each residual block.
        use_bn: BatchNorm inside the blocks too. If not, its modules stay in the state dict, as in
            the public code, but do not require gradients.
        in_channels: channels of the images.
        backend: of blocks and heads without BatchNorm inside. "torch" is the plain layers. "triton"
            runs all layers of a block as one op of matrix products that end in the ReLU and add to
            the shortcut, with Triton kernels for pooled shortcuts; on a CPU it needs Triton's
            interpreter. "auto" is triton on CUDA in half types and torch elsewhere.

    Raises:
        ValueError: an argument is out of range.

    Attributes:
        checkpoint_blocks: False; if set, backward recomputes each residual block instead of keeping
            its intermediate results. Gradients and running statistics stay the same.

    Parameters are channels_last, and so are the maps: ``r5.permute(0, 2, 3, 1).reshape(B, 25, D)``
    is a view. Parameters without heads at 128 px: 194.4 M (192/1536/8), 401.1 M (256/2048/10),
    626.6 M (320/2560/10).
    """

    takes_views = True

    def __init__(
        self,
        size: int,
        ndf: int,
        n_rkhs: int,
        depth: int,
        use_bn: bool = False,
        in_channels: int = 3,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size is {size!r}; it must be 32, 64 or 128 (pixels)")
        whole_number("ndf", ndf)
        whole_number("n_rkhs", n_rkhs)
        whole_number("depth", depth)
        whole_number("in_channels", in_channels)
        self.size, self.ndf, self.n_rkhs, self.depth = size, ndf, n_rkhs, depth
        self.use_bn, self.in_channels = bool(use_bn), in_channels
        self.checkpoint_blocks = False

        widths = [ndf, 2 * ndf, 4 * ndf] if size == 32 else [ndf, 2 * ndf, 4 * ndf, 8 * ndf]
        widest = widths[-1]
        layers = _stem(size, ndf, in_channels, use_bn)
        for n_in, n_out in pairwise(widths):
            kernel = 2 if n_out == widest else 4
            layers.append(ResidualBlock(n_in, n_out, kernel, 2, depth, use_bn))
        layers.append(OptionalBatchNorm(widest, use_bn))
        self._layer_7 = len(layers) - 1
        layers.append(ResidualBlock(widest, widest, 3, 1, depth, use_bn))
        self._layer_5 = len(layers) - 1
        layers.append(ResidualBlock(widest, widest, 3, 1, depth, use_bn))
        layers.append(ResidualConv(widest, n_rkhs, 3, 1, use_bn))
        layers.append(OptionalBatchNorm(n_rkhs, use_bn=True))

        self.layer_list = nn.ModuleList(layers)
        self.rkhs_block_5 = RKHSHead(widest, n_rkhs, use_bn)
        self.rkhs_block_7 = RKHSHead(widest, n_rkhs, use_bn)
        self.to(memory_format=torch.channels_last)
        self.backend = backend

    @property
    def backend(self) -> str:
        """Of the residual layers; may be set."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend is {name!r}; it must be one of {', '.join(BACKENDS)}")
        self._backend = name
        for module in self.modules():
            if isinstance(module, ResidualConv | RKHSHead):
                module.backend = name

    def backend_for(self, dtype: torch.dtype, device: torch.device) -> str:
        """What runs residual layers whose products are of this dtype: "torch" or "triton"."""
        return "torch" if self.use_bn else chosen_backend(self._backend, dtype, device)

    def forward(self, x: Tensor) -> EncoderOutput | tuple[EncoderOutput, ...]:
        """Encode a batch, or several views of one.

        Args:
            x: [B, in_channels, size, size], the parameters' dtype (any floating dtype under
                autocast) and device, in any memory format: if not channels_last, it is copied once.
                B must be 2 or more while BatchNorm is training. Or V views, [V, B, in_channels,
                size, size]: each gets the features that it would get alone, and BatchNorm takes
                and keeps statistics view by view, but other layers work on all of them at once.

        Returns:
            r1 [B, D, 1, 1], r5 [B, D, 5, 5] and r7 [B, D, 7, 7], channels_last; a tuple of V such
            results for V views.

        Raises:
            ValueError: the shape or device is wrong. TypeError: the dtype is wrong.
        """
        norm = self.layer_list[-1].get_submodule("bn")
        check_images(self, x, training=norm.training)
        if x.ndim != 5:
            return self._encode(x, 1)[0]
        if self.use_bn:
            return tuple(self._encode(view, 1)[0] for view in x.unbind(0))
        return self._encode(x.flatten(0, 1), len(x))

    def _encode(self, x: Tensor, views: int) -> tuple[EncoderOutput, ...]:
        """Outputs of ``views`` views that follow one another."""
        x = x.contiguous(memory_format=torch.channels_last)
        map_5 = map_7 = x
        *layers, last = self.layer_list
        for index, layer in enumerate(layers):
            if self.checkpoint_blocks and isinstance(layer, ResidualBlock | ResidualConv):
                x = _checkpointed(layer, x)
            else:
                x = layer(x)
            if index == self._layer_7:
                map_7 = x
            elif index == self._layer_5:
                map_5 = x
        ends = (
            (last, x),
            (self.rkhs_block_5.bn_out, self.rkhs_block_5.embed(map_5)),
            (self.rkhs_block_7.bn_out, self.rkhs_block_7.embed(map_7)),
        )
        if views == 1:  # chunk would tie a traced graph to its batch size
            return (EncoderOutput(*(norm(found) for norm, found in ends)),)
        parts = [[norm(part) for part in found.chunk(views)] for norm, found in ends]
        return tuple(EncoderOutput(*view) for view in zip(*parts, strict=True))


class _TakesImages(Protocol):
    in_channels: int
    size: int
    rkhs_block_5: RKHSHead


def check_images(encoder: _TakesImages, x: Tensor, *, training: bool) -> None:
    """Raise unless x is what ``Encoder.forward`` says; ``training`` is its BatchNorms' mode."""
    image = encoder.in_channels, encoder.size, encoder.size
    if x.ndim not in (4, 5) or tuple(x.shape[-3:]) != image or (x.ndim == 5 and not len(x)):
        expected = f"{encoder.in_channels}, {encoder.size}, {encoder.size}]"
        raise ValueError(
            f"x has shape {list(x.shape)}; it must be [B, {expected} or, for V views,"
            f" [V, B, {expected}"
        )
    least = 2 if training else 1
    images = x.shape[-4]
    if images < least:
        mode = "training, for BatchNorm" if training else "evaluation"
        raise ValueError(f"x has {images} images; it must have {least} or more in {mode}")
    weight = encoder.rkhs_block_5.conv1.weight
    if x.device != weight.device:
        raise ValueError(f"x is on {x.device}; it must be on {weight.device}, as the encoder is")
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; it must be normalized {weight.dtype}")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x is {x.dtype}; it must be {weight.dtype}, as the encoder's weights")


def encode_views(encoder: nn.Module, views: Tensor) -> tuple[EncoderOutput, ...]:
    """Outputs of an encoder for views [V, B, channels, height, width], in one call if it can.

    A module with ``takes_views``, also inside DistributedDataParallel, takes all views at once;
    another is called once for each.
    """
    if getattr(getattr(encoder, "module", encoder), "takes_views", False):
        return encoder(views)
    return tuple(encoder(view) for view in views.unbind(0))
