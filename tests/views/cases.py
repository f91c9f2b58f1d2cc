"""Images and parameters for tests of the views."""

import numpy as np
import torch

from amdim_fast.views.params import POLICIES, ViewParams
from amdim_fast.views.sampling import sample_view_params

HALF = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(policy, sizes, seed=0, **options):
    """Parameters of a policy or of the policy of that name."""
    policy = POLICIES[policy] if isinstance(policy, str) else policy
    return sample_view_params(policy, sizes, generator=seeded(seed), **options)


def from_pillow(image):
    return torch.from_numpy(np.array(image))


def white_noise(height, width, seed=0):
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=seeded(seed))


def smooth_noise(height, width, seed=0):
    """Like a photograph: coarse structure in each channel, some of it over-exposed."""
    coarse = torch.rand(1, 3, 4, 5, generator=seeded(seed)) * 400 - 70
    size = (height, width)
    image = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=True)
    grain = torch.randn(1, 3, height, width, generator=seeded(seed + 1)) * 4
    return (image + grain).clamp(0, 255).to(torch.uint8)[0].movedim(0, -1)


def plain(sizes, views=1):
    """Whole images as they are."""
    lead = (views, len(sizes))
    no = torch.zeros(lead, dtype=torch.bool)
    whole = torch.tensor([[0, 0, height, width] for height, width in sizes], dtype=torch.int32)
    return ViewParams(
        crop=whole.repeat(views, 1, 1),
        translate=torch.zeros(*lead, 2, dtype=torch.int32),
        flip=no,
        jitter=no,
        order=torch.arange(4, dtype=torch.int32).repeat(*lead, 1),
        brightness=torch.ones(lead),
        contrast=torch.ones(lead),
        saturation=torch.ones(lead),
        hue=torch.zeros(lead),
        gray=no,
    )


def any_params(sizes, views=2, seed=0):
    """All that is possible, far beyond the policies: any crop and move, factors 0, 1 and large."""
    generator = seeded(seed)
    lead = (views, len(sizes))
    extent = torch.tensor(sizes).expand(*lead, 2)

    def share(*trailing):
        return torch.rand(*lead, *trailing, generator=generator, dtype=torch.float64)

    def chance(probability):
        return share() < probability

    def factor():
        special = torch.tensor([0.0, 1e-3, 1 - 2**-24, 1.0, 2.7, 40.0])
        picked = special[torch.randint(6, lead, generator=generator)]
        return torch.where(chance(0.2), picked, 2 * share().float())

    length = (share(2) ** 2 * extent).long() + 1
    length = torch.where(chance(0.1)[..., None], torch.ones_like(length), length)
    length = torch.where(chance(0.2)[..., None], extent, length)
    start = (share(2) * (extent - length + 1)).long()
    offset = (share(2) * (2 * extent - 1)).long() - extent + 1
    ends = torch.where(chance(0.5), -0.5, 0.5)
    return ViewParams(
        crop=torch.cat([start, length], -1).int(),
        translate=torch.where(chance(0.5)[..., None], offset, 0).int(),
        flip=chance(0.5),
        jitter=chance(0.8),
        order=share(4).argsort(-1).int(),
        brightness=factor(),
        contrast=factor(),
        saturation=factor(),
        hue=torch.where(chance(0.1), ends, share().float() - 0.5),
        gray=chance(0.25),
    )
