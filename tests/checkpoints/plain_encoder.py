"""The public code's encoder as plain functions of a state dict under one version's own names."""

import torch
import torch.nn.functional as F

# (kind, kernel, stride) of each layer; "mid" is the BatchNorm before the 7x7 map.
LAYERS = {
    32: ["stem", (1, 1), (4, 2), (2, 2), "mid", (3, 1), (3, 1), (3, 1), "last"],
    128: ["stem", "conv", (4, 2), (4, 2), (2, 2), "mid", (3, 1), (3, 1), (3, 1), "last"],
}


class PlainEncoder:
    """r1, r5 and r7 in evaluation mode.

    Args:
        state: names begin with "layer_list." and "rkhs_block_".
        size: 32 or 128.
        blocks: whether the BatchNorms inside blocks, and the one before the 7x7 map, are on.
        heads: whether the heads' hidden ones are.
        last: whether the last layer is.
    """

    def __init__(self, state, size, *, blocks, heads, last):
        self.state, self.size = state, size
        self.blocks, self.heads, self.last = blocks, heads, last

    def norm(self, name, x):
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.state[f"{name}.bn.{part}"] for part in parts))

    def residual(self, name, x, kernel, stride):
        hidden = F.conv2d(x, self.state[f"{name}.conv1.weight"], stride=stride)
        if self.blocks:
            hidden = self.norm(f"{name}.bn1", hidden)
        out = F.conv2d(hidden.relu(), self.state[f"{name}.conv2.weight"])
        pooled = F.avg_pool2d(x, kernel, stride)
        grown = torch.zeros_like(out)
        grown[:, : pooled.shape[1]] = pooled
        return out + grown

    def head(self, name, x):
        hidden = F.conv2d(x, self.state[f"{name}.conv1.weight"])
        if self.heads:
            hidden = self.norm(f"{name}.bn1", hidden)
        out = F.conv2d(hidden.relu(), self.state[f"{name}.conv2.weight"])
        shortcut = self.state[f"{name}.shortcut.weight"], self.state[f"{name}.shortcut.bias"]
        return self.norm(f"{name}.bn_out", out + F.conv2d(x, *shortcut))

    def convolution(self, name, x, **options):
        bias = self.state.get(f"{name}.conv.bias")
        return F.conv2d(x, self.state[f"{name}.conv.weight"], bias, **options).relu()

    def __call__(self, x):
        maps = {}
        for index, layer in enumerate(LAYERS[self.size]):
            name = f"layer_list.{index}"
            if layer == "stem" and self.size == 128:
                x = self.convolution(name, F.pad(x, (2, 2, 2, 2), mode="reflect"), stride=2)
            elif layer in ("stem", "conv"):
                x = self.convolution(name, x)
            elif layer in ("mid", "last"):
                x = self.norm(name, x) if (self.blocks if layer == "mid" else self.last) else x
            elif f"{name}.conv1.weight" in self.state:
                x = self.residual(name, x, *layer)
            else:
                for place in range(sum(f"{name}." in n and "conv1" in n for n in self.state)):
                    first = layer if place == 0 else (1, 1)
                    x = self.residual(f"{name}.layer_list.{place}", x, *first)
            maps[x.shape[-1]] = x
        return x, self.head("rkhs_block_5", maps[5]), self.head("rkhs_block_7", maps[7])
