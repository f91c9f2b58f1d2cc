"""Features that the ranks of a group share out, and locations."""

import torch

IMAGES, WIDTH, LOCATIONS, SETS = 12, 24, 5, 2


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def own(tensor, rank, world, dim=0):
    """The images of one rank."""
    return tensor.chunk(world, dim)[rank].detach().clone()


def log_prob_inputs(dtype):
    src = draw(SETS, IMAGES, WIDTH, dtype=dtype, seed=1) * 2
    trg = draw(IMAGES, LOCATIONS, WIDTH, dtype=dtype, seed=2)
    upstream = draw(SETS, IMAGES, LOCATIONS, dtype=dtype, seed=3)
    return src, trg, upstream, draw(SETS, dtype=dtype, seed=4)


def image_and_text():
    """Unit vectors [IMAGES, WIDTH] of two encoders."""
    found = (draw(IMAGES, WIDTH, dtype=torch.float64, seed=seed) for seed in (6, 7))
    return [torch.nn.functional.normalize(part, dim=1) for part in found]


def hard_negatives():
    """Twice as many as images, [2 IMAGES, LOCATIONS, WIDTH]."""
    return draw(2 * IMAGES, LOCATIONS, WIDTH, dtype=torch.float64, seed=8)


def maps(dtype=torch.float32, components=None):
    """Features of both views as the losses take them, and locations."""
    lead = () if components is None else (components,)
    features = []
    for view in range(2):
        features += [
            2 * draw(*lead, IMAGES, WIDTH, dtype=dtype, seed=10 + view),
            draw(IMAGES, WIDTH, 2, 2, dtype=dtype, seed=20 + view),
            draw(IMAGES, WIDTH, 3, 3, dtype=dtype, seed=30 + view),
        ]
    generator = torch.Generator().manual_seed(5)
    locations = [torch.randint(0, 4, (IMAGES,), generator=generator) for _ in range(2)]
    return features, locations
