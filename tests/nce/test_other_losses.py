"""The functions of docs/other_losses.md are the losses that they are named after.

Each against its paper's definition in plain torch, in float64; and in float32 with the kernels.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import amdim_fast
from benchmarks.bench_losses import forward_backward
from benchmarks.plain_losses import PLAIN as DEFINITIONS
from benchmarks.plain_losses import page_blocks

BLOCK_OF = page_blocks()
IMAGES, WIDTH = 6, 8


def inputs_of(name):
    """Features that want gradients, and the rest of the arguments."""
    vectors = [torch.randn(IMAGES, WIDTH) for _ in range(2)]
    maps = [torch.randn(IMAGES, WIDTH, 3, 4) for _ in range(2)]
    queue = F.normalize(torch.randn(4 * IMAGES, WIDTH), dim=1)
    return {
        "clip_loss": ([*vectors, torch.tensor(2.0)], ()),
        "simclr_loss": (vectors, (0.5,)),
        "cpc_loss": (
            [torch.randn(IMAGES, 5, 10), torch.randn(IMAGES, 5, WIDTH)],
            (torch.nn.Linear(10, WIDTH), 2),
        ),
        "cpc_map_loss": (maps, (1,)),
        "dim_loss": ([vectors[0], maps[0]], ()),
        "st_dim_loss": (
            [torch.randn(IMAGES, 10), *maps],
            (torch.nn.Linear(10, WIDTH), torch.nn.Linear(WIDTH, WIDTH)),
        ),
        "moco_loss": (vectors[:1], (vectors[1], queue, 0.2)),
        "queue_loss": (vectors[:1], (vectors[1], queue[:13], 0.2)),
    }[name]


def found_of(function, features, others, dtype):
    """The loss and the gradients of features and layers."""
    leaves = [part.detach().to(dtype).requires_grad_() for part in features]
    others = [
        part.to(dtype) if isinstance(part, torch.Tensor | torch.nn.Module) else part
        for part in others
    ]
    return list(forward_backward(function, leaves, others))


def of_page(name, backend=None, change=("", "")):
    """The page's function, with a backend, or with a change of its text."""
    names = {}
    exec(BLOCK_OF[name].replace(*change) if change[0] else BLOCK_OF[name], names)
    for called in ("nce_loss", "nce_log_prob"):
        if backend is not None and called in names:
            names[called] = partial(getattr(amdim_fast, called), backend=backend)
    return names[name]


def test_every_function_of_the_page_has_a_definition():
    assert set(BLOCK_OF) == set(DEFINITIONS)


def check(name, change=("", "")):
    features, others = inputs_of(name)
    truth = found_of(DEFINITIONS[name], features, others, torch.float64)
    found = found_of(of_page(name, change=change), features, others, torch.float64)
    torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_is_its_definition(name):
    check(name)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_in_float32(name, backend):
    features, others = inputs_of(name)
    found = found_of(of_page(name, backend), features, others, torch.float32)
    truth = found_of(DEFINITIONS[name], features, others, torch.float64)
    torch.testing.assert_close(found, truth, rtol=2e-5, atol=2e-6, check_dtype=False)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_compiles_as_one_graph(name):
    features, others = inputs_of(name)
    torch.compiler.reset()
    whole = torch.compile(of_page(name), backend="aot_eager", fullgraph=True)
    found = found_of(whole, features, others, torch.float64)
    truth = found_of(DEFINITIONS[name], features, others, torch.float64)
    torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("clip_loss", ('"clip": None', '"clip": 20.0')),
        ("clip_loss", ("nce_loss(text, image", "nce_loss(image, text")),
        ("simclr_loss", ("clip=None", "clip=20.0")),
        ("simclr_loss", ("[1, :, 0]", "[1, :, 1]")),
        ("cpc_loss", ("scale=1.0", "scale=1.01")),
        ("cpc_map_loss", ("places[:, rows:]", "places[:, :-rows]")),
        ("dim_loss", ("scale=1.0, ", "")),
        ("st_dim_loss", ("same_location", "other_images")),
        ("moco_loss", ("(-1, len(key))", "(-1, 1)")),
        ("moco_loss", ("1 / tau", "tau")),
        ("queue_loss", ("[key, queue]", "[queue, key]")),
    ],
)
def test_a_planted_error_is_caught(name, change):
    assert change[0] in BLOCK_OF[name]
    with pytest.raises(AssertionError):
        check(name, change)
