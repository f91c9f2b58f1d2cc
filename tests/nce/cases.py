"""Inputs, truths and errors that the tests of the contrastive kernels share."""

import torch
from amdim_fast.kernels.nce_tiles import Tile, TileSet

from amdim_fast import nce_log_prob
from amdim_fast.nce import layout, parts, plan, products, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLIPS = (5.0, 20.0, 43.0, 100.0, None)
# Libraries of float32 products on CPUs, as far as this torch has them.
LIBRARIES = ["aten"]
if products.has_onednn():
    LIBRARIES.append("onednn")
# Small enough that a few dozen images make several tiles, strips and bands of row tiles.
TILE = Tile(rows=16, columns=32, width=16, swizzle=2, warps=4, stages=2)


# How the kernels get their products.
WAYS = ("fused", "descriptors", "elementwise")


def tile_set(way):
    loads = TILE._replace(descriptors=way == "descriptors")
    return TileSet(way != "elementwise", loads, loads, TILE, TILE)


def budget_of(images, src, trg):
    """Bytes for blocks of this many target images, and for no kept scores."""
    rows = src.shape[:-1].numel()
    return images * rows * trg.shape[1] * (src.dtype.itemsize + 4)


def row_results_bytes(images):
    """Bytes of own scores, log-probabilities and gradients of these in LossMultiNCE.

    They are of 4 sets of 25 and 2 of 49 locations, and in no plan.
    """
    return 3 * 4 * images * (4 * 25 + 2 * 49)


def lower_floors(monkeypatch, least=256):
    """Chunks and blocks may take ``least`` bytes, or one row or image; pieces and parts are small.

    On a GPU they may take 16 rows or columns.
    """
    for name in ("LEAST_ROWS", "LEAST_COLUMNS"):
        monkeypatch.setattr(plan, name, 16)
    monkeypatch.setattr(plan, "LEAST_CPU_BYTES", least)
    monkeypatch.setattr(parts, "PIECE_BYTES", 512)
    monkeypatch.setattr(parts, "COMPILED_BYTES", 64)
    monkeypatch.setattr(products, "PART_BYTES", 1024)
    monkeypatch.setattr(products, "LEAST_ONEDNN", 0)
    monkeypatch.setattr(parts, "SCALED_PART_BYTES", 16 * 1024)
    monkeypatch.setattr(parts, "LIMB_ROWS", 16)
    monkeypatch.setattr(layout, "_layouts", {})


def use_library(monkeypatch, library):
    """Let it make all products in float32, small ones too."""
    monkeypatch.setattr(products, "_cpu_library", lambda: library)
    monkeypatch.setattr(products, "_mkl_keeps_up", lambda: False)
    monkeypatch.setattr(products, "LEAST_ONEDNN", 0)


def features(images, locations, width, *, sets=None, dtype=torch.float32, scale=2.0):
    shape = (images, width) if sets is None else (sets, images, width)
    src = (scale * torch.randn(shape)).to(DEVICE, dtype)
    trg = torch.randn(images, locations, width).to(DEVICE, dtype)
    return src.requires_grad_(), trg.requires_grad_()


@torch.no_grad()
def make_extreme(src, trg, value):
    """Overwrite features: "constant", "huge", or "opposed" (huge, all scores at the lower clip)."""
    if value == "constant":
        src.fill_(1.0)
        trg.fill_(1.0)
    elif value == "huge":
        src.mul_(1e4)
        trg.mul_(1e4)
    else:
        src.fill_(1e4)
        trg.fill_(-1e4)


def upstream_like(src, trg, scale=1.0):
    log_prob = scale * torch.randn(*src.shape[:-1], trg.shape[1])
    return log_prob.to(DEVICE), torch.randn(src.shape[:-2]).to(DEVICE)


def evaluate(function, src, trg, upstream, **options):
    """Log_prob, score, mean_sq and the gradients of src and trg."""
    output = function(src, trg, **options)
    objective = (output.log_prob * upstream[0]).sum() + (output.mean_sq * upstream[1]).sum()
    grads = torch.autograd.grad(objective, (src, trg))
    return [tensor.detach() for tensor in (*output, *grads)]


def relative_error(value, truth):
    value, truth = value.detach().double(), truth.detach()
    return float((value - truth).norm() / truth.norm().clamp_min(1e-30))


def margin(clip, dtype):
    """Some float32 roundings, one of an exponent as large as the clip; in gradients half a unit."""
    outputs = (4 + (clip or 0.0)) * torch.finfo(torch.float32).eps
    return outputs, outputs + (dtype != torch.float32) * torch.finfo(dtype).eps / 2


def check(src, trg, upstream, *, budgets=(0, None), **options):
    """The kernels are no further from float64 than eager in this dtype, plus the margin."""
    wide = [tensor.detach().double().requires_grad_() for tensor in (src, trg)]
    truth = evaluate(reference.nce_log_prob, *wide, upstream, **options)
    eager = evaluate(reference.nce_log_prob, src, trg, upstream, **options)
    of_outputs, of_grads = margin(options.get("clip", 20.0), src.dtype)
    margins = [of_outputs] * 3 + [of_grads] * 2
    for budget in budgets:
        ours = evaluate(
            nce_log_prob,
            src,
            trg,
            upstream,
            backend="triton",
            memory_budget=budget,
            **options,
        )
        assert [value.dtype for value in ours] == [torch.float32] * 3 + [src.dtype] * 2
        for value, baseline, expected, slack in zip(ours, eager, truth, margins, strict=True):
            assert relative_error(value, expected) <= relative_error(baseline, expected) + slack
