"""Plain torch definitions of the losses of docs/other_losses.md, and the functions of that page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAGE = Path(__file__).resolve().parents[1] / "docs" / "other_losses.md"
Loss = Callable[..., Tensor]


def page_blocks() -> dict[str, str]:
    """Source of each function of the page, by name."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return {re.findall(r"def (\w+)\(", block)[0]: block for block in blocks}


def page_loss(name: str) -> Loss:
    """A function of the page, as it stands there."""
    names: dict[str, Any] = {}
    exec(page_blocks()[name], names)
    loss: Loss = names[name]
    return loss


def clip_loss(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """Both directions of one matrix of scores."""
    logits = log_scale.exp() * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    labels = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def simclr_loss(first: Tensor, second: Tensor, tau: float) -> Tensor:
    """NT-Xent over 2 B examples, each without itself."""
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarity = (z @ z.T / tau).fill_diagonal_(-torch.inf)
    labels = torch.arange(len(z), device=z.device).roll(len(first))
    return F.cross_entropy(similarity, labels)


def cpc_loss(context: Tensor, codes: Tensor, predict: nn.Module, step: int) -> Tensor:
    """Each prediction against all codes that are predicted in the batch."""
    logits = predict(context[:, :-step]).flatten(0, 1) @ codes[:, step:].flatten(0, 1).T
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def cpc_map_loss(predicted: Tensor, codes: Tensor, rows: int) -> Tensor:
    """Each place against the codes of all places."""
    candidates = codes.permute(0, 2, 3, 1)  # [B, h, w, D]
    sources = predicted.permute(0, 2, 3, 1)[:, :-rows]
    places = torch.arange(candidates[..., 0].numel(), device=codes.device)
    own = places.view(candidates.shape[:3])[:, rows:]
    logits = sources.flatten(0, 2) @ candidates.flatten(0, 2).T
    return F.cross_entropy(logits, own.flatten())


def dim_loss(summary: Tensor, feature_map: Tensor) -> Tensor:
    """``infonce_loss`` of the paper's code, with its mask as minus infinity."""
    local = feature_map.flatten(2).permute(0, 2, 1)  # [B, L, D]
    positive = (local @ summary[:, :, None])[:, :, 0]  # [B, L]
    negative = torch.einsum("bd,nld->bnl", summary, local)
    own = torch.eye(len(summary), dtype=torch.bool, device=summary.device)[:, :, None]
    negative = negative.masked_fill(own, -torch.inf).flatten(1)
    negative = negative[:, None].expand(-1, positive.shape[1], -1)
    logits = torch.cat([positive[:, :, None], negative], dim=2)
    return -F.log_softmax(logits, dim=2)[:, :, 0].mean()


def st_dim_loss(
    global_now: Tensor, map_now: Tensor, map_then: Tensor, of_global: nn.Module, of_local: nn.Module
) -> Tensor:
    """The loops over locations of the paper's code, with its bilinear scores."""
    total, (height, width) = map_now.new_zeros(()), map_now.shape[2:]
    labels = torch.arange(len(map_now), device=map_now.device)
    for y in range(height):
        for x in range(width):
            positives = map_then[:, :, y, x].T
            for prediction in (of_global(global_now), of_local(map_now[:, :, y, x])):
                total = total + F.cross_entropy(prediction @ positives, labels)
    return total / (height * width)


def moco_loss(query: Tensor, key: Tensor, queue: Tensor, tau: float) -> Tensor:
    """Algorithm 1 of the paper."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1).detach()
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue.T], dim=1) / tau
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def queue_loss(query: Tensor, key: Tensor, queue: Tensor, tau: float) -> Tensor:
    """The same, with the other keys of the batch as negatives too."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1).detach()
    logits = query @ torch.cat([key, queue]).T / tau
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


PLAIN: dict[str, Loss] = {
    "clip_loss": clip_loss,
    "simclr_loss": simclr_loss,
    "cpc_loss": cpc_loss,
    "cpc_map_loss": cpc_map_loss,
    "dim_loss": dim_loss,
    "st_dim_loss": st_dim_loss,
    "moco_loss": moco_loss,
    "queue_loss": queue_loss,
}
