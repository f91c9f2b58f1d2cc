"""The functions of docs/other_losses.md are the losses that they are named after.

Each against its paper's definition in plain torch, in float64; and in float32 with the kernels.
"""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import amdim_fast

PAGE = Path(__file__).resolve().parents[2] / "docs" / "other_losses.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
BLOCK_OF = {re.search(r"def (\w+)\(", block)[1]: block for block in BLOCKS}
IMAGES, WIDTH = 6, 8


def clip_loss(image, text, log_scale):
    image, text = (part / part.norm(dim=1, keepdim=True) for part in (image, text))
    logits = log_scale.exp() * image @ text.T
    labels = torch.arange(IMAGES)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def simclr_loss(first, second, tau):
    """NT-Xent over 2 B examples, each without itself."""
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarity = (z @ z.T / tau).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarity, torch.arange(2 * IMAGES).roll(IMAGES))


def cpc_loss(context, codes, predict, step):
    """Each prediction against all codes that are predicted in the batch."""
    images, steps, _ = codes.shape
    candidates = torch.stack([codes[b, t] for b in range(images) for t in range(step, steps)])
    losses = []
    for b in range(images):
        for t in range(steps - step):
            logits = candidates @ predict(context[b, t])
            losses.append(F.cross_entropy(logits, torch.tensor(b * (steps - step) + t)))
    return torch.stack(losses).mean()


def cpc_map_loss(predicted, codes, rows):
    """Each place against all codes."""
    images, _, height, width = codes.shape
    grid = [(b, y, x) for b in range(images) for y in range(height) for x in range(width)]
    candidates = torch.stack([codes[b, :, y, x] for b, y, x in grid])
    losses = []
    for b, y, x in grid:
        if y + rows < height:
            logits = candidates @ predicted[b, :, y, x]
            losses.append(F.cross_entropy(logits, torch.tensor(grid.index((b, y + rows, x)))))
    return torch.stack(losses).mean()


def dim_loss(summary, feature_map):
    """``infonce_loss`` of the paper's code, with its mask as minus infinity."""
    local = feature_map.flatten(2).permute(0, 2, 1)  # [B, L, D]
    positive = (local @ summary[:, :, None])[:, :, 0]  # [B, L]
    negative = torch.einsum("bd,nld->bnl", summary, local)
    own = torch.eye(len(summary), dtype=torch.bool)[:, :, None]
    negative = negative.masked_fill(own, -torch.inf).flatten(1)
    negative = negative[:, None].expand(-1, positive.shape[1], -1)
    logits = torch.cat([positive[:, :, None], negative], dim=2)
    return -F.log_softmax(logits, dim=2)[:, :, 0].mean()


def st_dim_loss(global_now, map_now, map_then, of_global, of_local):
    """The loops over locations of the paper's code, with its bilinear scores."""
    total, (height, width) = 0.0, map_now.shape[2:]
    for y in range(height):
        for x in range(width):
            positives = map_then[:, :, y, x].T
            for prediction in (of_global(global_now), of_local(map_now[:, :, y, x])):
                total += F.cross_entropy(prediction @ positives, torch.arange(IMAGES))
    return total / (height * width)


def moco_loss(query, key, queue, tau):
    """Algorithm 1 of the paper."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1).detach()
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue.T], dim=1) / tau
    return F.cross_entropy(logits, torch.zeros(IMAGES, dtype=torch.int64))


def queue_loss(query, key, queue, tau):
    """The same, with the other keys of the batch as negatives too."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1).detach()
    logits = query @ torch.cat([key, queue]).T / tau
    return F.cross_entropy(logits, torch.arange(IMAGES))


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


DEFINITIONS = {
    function.__name__: function
    for function in (
        *(clip_loss, simclr_loss, cpc_loss, cpc_map_loss),
        *(dim_loss, st_dim_loss, moco_loss, queue_loss),
    )
}


def found_of(function, features, others, dtype):
    """The loss and the gradients of features and layers."""
    leaves = [part.detach().to(dtype).requires_grad_() for part in features]
    others = [
        part.to(dtype) if isinstance(part, torch.Tensor | torch.nn.Module) else part
        for part in others
    ]
    layers = [part for part in others if isinstance(part, torch.nn.Module)]
    parameters = [weight for layer in layers for weight in layer.parameters()]
    loss = function(*leaves, *others)
    return [loss.detach(), *torch.autograd.grad(loss, [*leaves, *parameters])]


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
