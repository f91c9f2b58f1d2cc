"""BatchNorm with the statistics of a process group's whole batch, on CPUs and on GPUs.

torch's own SyncBatchNorm takes no CPU tensors and makes the host wait for the GPU in each layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amdim_fast.distributed.agreement import resolve
from amdim_fast.distributed.collectives import start_gather


class _Normalize(torch.autograd.Function):
    """x normalized per channel, with the mean and the biased variance over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group_name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.dim()) if d != 1]
        own = torch.stack(torch.var_mean(x.to(weight.dtype), dims, correction=0))
        var, mean = start_gather(own, resolve(group_name)).wait().unbind(1)
        var = (var + (mean - mean.mean(0)).square()).mean(0)
        mean = mean.mean(0)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.dims, ctx.group_name = dims, group_name
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _mean: Tensor, _var: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        wide = [1, -1] + [1] * (x.dim() - 2)
        mean, scale, factor = (v.view(wide) for v in (mean, scale, weight * scale))
        normal, upstream = (x.to(weight.dtype) - mean) * scale, grad.to(weight.dtype)
        grad_weight, grad_bias = (upstream * normal).sum(ctx.dims), upstream.sum(ctx.dims)
        sums = start_gather(torch.stack([grad_weight, grad_bias]), resolve(ctx.group_name)).wait()
        count = len(sums) * x.numel() // x.shape[1]
        of_normal, of_one = (total.view(wide) for total in sums.sum(0).div(count))
        grad_x = factor * (upstream - of_one - normal * of_normal)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None


class SyncBatchNorm(_BatchNorm):
    """BatchNorm that, in training, has the statistics of all ranks of a group.

    It equals ``nn.BatchNorm1d`` or ``2d`` on the concatenated batches of the ranks, which must be
    of equal size. Gradients are those of the sum of the ranks' objectives. Statistics have the
    dtype of the weights and are summed in the order of the ranks. torch.compile breaks its graph
    here.
    """

    group_name: str
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input has shape {list(input.shape)}; it must be [B, C, ...]")

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...]."""
        if not self.training:
            return super().forward(input)
        return self._whole_batch(input)

    @torch.compiler.disable
    def _whole_batch(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        found, mean, var = _Normalize.apply(
            input, self.weight, self.bias, self.eps, self.group_name
        )
        count = resolve(self.group_name).size() * input.numel() // input.shape[1]
        self._follow(mean, var * (count / max(count - 1, 1)))
        return found

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Update the running statistics, which every BatchNorm of this package has."""
        buffers: dict[str, Any] = dict(self.named_buffers())
        buffers["num_batches_tracked"].add_(1)
        buffers["running_mean"].lerp_(mean, self.momentum)
        buffers["running_var"].lerp_(var, self.momentum)


def synchronize_batchnorm(module: nn.Module, group_name: str) -> None:
    """Replace each BatchNorm inside by a SyncBatchNorm with the same parameters and buffers.

    Raises:
        ValueError: one is of another class, such as with an activation inside, or has no weights
            or running statistics with a momentum; names it. Nothing is replaced then.
    """
    for path, child in module.named_modules():
        if not _can_be_replaced(child):
            raise ValueError(
                f"sync_bn is on, but {path} is a {type(child).__name__}; it must be a plain"
                " BatchNorm1d or 2d with weights, running statistics and a momentum: turn it off"
            )
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                new = SyncBatchNorm(child.num_features, child.eps, child.momentum)
                new.group_name, new.training = group_name, child.training
                new._parameters, new._buffers = child._parameters, child._buffers
                setattr(parent, name, new)


def _can_be_replaced(module: nn.Module) -> bool:
    """Whether it is no BatchNorm, one of several processes, or one that SyncBatchNorm equals."""
    if not isinstance(module, _BatchNorm) or isinstance(module, SyncBatchNorm | nn.SyncBatchNorm):
        return True
    plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d)
    return plain and module.affine and module.track_running_stats and module.momentum is not None
