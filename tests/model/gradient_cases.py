"""A small model, its views, and its gradients in micro-batches and by the plain definition."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from amdim_fast.model.amdim import AMDIM
from amdim_fast.model.encoder import EncoderOutput
from amdim_fast.model.gradient_cache import CachedEncoding
from amdim_fast.nce.reference import multiscale_nce
from amdim_fast.nce.reference_mixture import multiscale_mixture

# (images, micro_batch): the sizes of the micro-batches
SPLITS = {(6, 2): (2, 2, 2), (5, 3): (2, 3), (7, 3): (2, 2, 3), (4, 4): (4,), (4, 5): (4,)}
CLIP = 7.0


def make_model(dtype=torch.float64, frozen=False, use_bn=True, **options):
    """Small, with nothing at zero; running statistics unlike those at the start."""
    torch.manual_seed(1)
    model = AMDIM(32, 3, 12, 2, use_bn, tclip=CLIP, **options)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.train(not frozen)
    return model.to(dtype)


def make_views(images, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(images + 100 * seed)
    views = torch.randn(2, images, 3, 32, 32, dtype=torch.float64, generator=generator)
    locations = torch.randint(0, 25, (2, images), generator=generator)
    return views.to(dtype), tuple(locations)


def objective(model, maps, locations):
    """The reference's, of the features of both views."""
    if model.mixture is None:
        return sum(multiscale_nce(*maps, locations, clip=CLIP, reg_weight=0.05))
    sources = [(model.mixture(m.r1), m.r5, m.r7) for m in maps]
    options = {"tau": model.g2l_loss.tau, "alpha": model.g2l_loss.alpha, "clip": CLIP}
    return sum(multiscale_mixture(*sources, locations, **options)[:4])


def plain(model, views, locations, sizes):
    """Each micro-batch encoded with its graph, then one loss of all features."""
    maps = []
    for view in views:
        parts = [model.encoder(part) for part in view.split(sizes)]
        maps.append(EncoderOutput(*map(torch.cat, zip(*parts, strict=True))))
    loss = objective(model, maps, locations)
    loss.backward()
    return loss.detach()


def cached(model, views, locations, micro_batch, encoder=None):
    encoding = CachedEncoding(encoder or model.encoder, views, micro_batch)
    loss = model.objective(*encoding.features, locations=locations).loss
    loss.backward()
    encoding.backward()
    return loss.detach()


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in found.values()), found.keys()
    return found


def distance(found, expected):
    """Largest difference of a tensor, relative to its largest value.

    A bias before BatchNorm has gradient 0 but for rounding: 1e-4 of the largest is the least scale.
    """
    assert found.keys() == expected.keys()
    largest = {name: float(truth.abs().max()) for name, truth in expected.items()}
    least = 1e-4 * max(largest.values())
    return max(
        float((found[name].double() - truth.double()).abs().max()) / max(largest[name], least)
        for name, truth in expected.items()
    )


def whole_distance(found, expected):
    """Of all gradients as one vector, relative to its norm."""
    found, expected = (
        torch.cat([grad.double().flatten() for grad in grads.values()])
        for grads in (found, expected)
    )
    return float((found - expected).norm() / expected.norm())


def both(images, micro_batch, sizes, make=make_model, seed=0, **options):
    """(model, loss) of the cache and of the plain definition, from the same start."""
    models = make(**options), make(**options)
    views, locations = make_views(images, next(models[0].parameters()).dtype, seed)
    torch.manual_seed(3)
    ours = cached(models[0], views, locations, micro_batch)
    torch.manual_seed(3)
    truth = plain(models[1], views, locations, sizes)
    return (models[0], ours), (models[1], truth)


def statistics(model):
    found = {name: buffer for name, buffer in model.encoder.named_buffers() if "mean" in name}
    counts = {int(m.num_batches_tracked) for m in model.encoder.modules() if hasattr(m, "momentum")}
    return found, counts
