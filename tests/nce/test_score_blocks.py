"""Sums and gradients of blocks of scores, in torch operations and in C++, against float64."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch

from amdim_fast import last_plan, nce_loss
from amdim_fast.nce import compiled_blocks, parts, score_blocks
from amdim_fast.nce.pairing import Options, Pairing
from amdim_fast.nce.score_blocks import Block, RowTerms
from amdim_fast.nce.way import PairingShape
from tests.nce.cases import relative_error
from tests.threads import torch_threads

MODULES = (score_blocks, compiled_blocks)
EPS = torch.finfo(torch.float32).eps


class Case(NamedTuple):
    """Sizes of a block: some of S * B rows against some target images."""

    sets: int
    sources: int
    locations: int
    rows: int
    images: int
    first_row: int = 0
    first_image: int = 0
    image_offset: int = 0

    def block(self, clip=20.0, same_location=False):
        shape = PairingShape(self.sets, self.sources, self.images, self.locations, 1)
        options = Options(clip, same_location, False, 1, 1.0, 0.0)
        nothing = torch.empty(0)
        pairing = Pairing(nothing, nothing, shape, None, options, 0, 0, 0, self.image_offset)
        raw = 8.0 * torch.randn(self.images * self.locations, self.rows)
        stored = raw if clip is None else raw * (-2.0 / clip)
        return Block(pairing, stored, self.first_row, self.first_image)


# One of everything; off a vector; strips and parts that divide nothing; more images than sources
# and fewer, as on ranks; a chunk from the middle of one set to that of another; a later block.
CASES = [
    Case(1, 1, 1, 1, 1),
    Case(1, 1, 3, 1, 2, image_offset=1),
    Case(2, 7, 4, 14, 7),
    Case(3, 1400, 2, 4200, 9),
    Case(1, 33, 5, 33, 95, image_offset=20),
    Case(4, 30, 3, 120, 11, image_offset=-13),
    Case(4, 30, 3, 47, 30, first_row=21),
    Case(4, 30, 3, 47, 12, first_row=21, first_image=9),
    Case(5, 1, 2, 3, 4, first_row=1, image_offset=2),
    Case(2, 64, 49, 128, 64),
]


def is_own(block):
    """[n, 1, C] whether an image is the row's own."""
    pairing, (total, count) = block.pairing, block.stored.shape
    source = (block.first_row + torch.arange(count)) % pairing.shape.images
    own = source + pairing.image_offset - block.first_image
    images = torch.arange(total // pairing.shape.locations)
    return (images[:, None] == own)[:, None]


def own_of(block, cube):
    """[C, L] of a cube [n, L, C], 0 where there is no own image."""
    return torch.where(is_own(block), cube, 0.0).sum(0).t()


def score_and_slope(block):
    """The truth: [n, L, C] each."""
    clip, cube = block.pairing.options.clip, block.cube(block.stored.double())
    if clip is None:
        return cube, torch.ones_like(cube)
    score = clip * torch.tanh(cube * (-clip / 2.0) / clip)
    return score, 1.0 - (score / clip).square()


def bound(block):
    """A number that scores hardly exceed."""
    return block.pairing.options.clip or 40.0


def sums(block):
    """The truth: own, neg, square."""
    cube = block.cube(block.stored.double())
    score = score_and_slope(block)[0].masked_fill(is_own(block), -torch.inf)
    dims = (0,) if block.pairing.options.same_location else (0, 1)
    neg = score.logsumexp(dims).view(-1, cube.shape[2])
    return own_of(block, cube), neg, cube.square().sum((0, 1))


def gradients(block, of):
    """The truth: [n * L, C]."""
    cube, (score, slope) = block.cube(block.stored.double()), score_and_slope(block)
    own, weight, neg, penalty = (value.double() for value in of)
    found = weight.t() * torch.exp(score - neg.t()) * slope
    found = torch.where(is_own(block), own.t(), found)
    return (found + penalty * cube).reshape(block.stored.shape)


def upstream(block):
    """Gradients of own products, weights, log-sums and penalties, as a loss has them."""
    count, locations = block.stored.shape[1], block.pairing.shape.locations
    neg = sums(block)[1].t().clamp_min(-60.0).to(block.stored.dtype)
    random = torch.randn(count, locations, dtype=neg.dtype)
    return RowTerms(random, torch.rand(neg.shape, dtype=neg.dtype), neg, 1e-3 * random[:, 0])


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(parts, "PIECE_BYTES", 4096)


@pytest.fixture(params=itertools.product(CASES, (5.0, 20.0, 43.0, None), (False, True)), ids=str)
def block(request):
    """Of each case, with each clip and both kinds of negatives."""
    case, clip, same_location = request.param
    return case.block(clip, same_location)


def test_sums(block):
    truth = sums(block)
    for module in MODULES:
        own, neg, square = module.sums(block)
        assert torch.equal(own.double(), truth[0])
        assert relative_error(square, truth[2]) < 4 * EPS
        none = truth[1].isinf()
        assert torch.equal(neg.isinf(), none)
        error = (neg.double() - truth[1])[~none].abs()
        assert not error.numel() or error.max() < (8 + 2 * bound(block)) * EPS


@pytest.mark.parametrize("clip", [20.0, None])
@pytest.mark.parametrize("scale", [1.0, 0.02])
@pytest.mark.parametrize(
    "case", [Case(1, 8, 49, 8, 8192), Case(1, 2, 1, 2, 200_000)], ids=["L = 49", "L = 1"]
)
def test_long_sums_no_worse_than_eager(monkeypatch, case, scale, clip):
    """Of hundreds of thousands of scores; the margin is one rounding of each of a few sums."""
    monkeypatch.setattr(parts, "PIECE_BYTES", 2**21)
    block = case.block(clip)
    block.stored.mul_(scale)
    truth = sums(block)[1]
    score = score_and_slope(block)[0].float().masked_fill(is_own(block), -torch.inf)
    eager = (score.logsumexp((0, 1)) - truth).abs().max()
    for module in MODULES:
        assert (module.sums(block)[1] - truth).abs().max() <= eager + 6 * EPS


def test_gradients(block):
    """Into memory of their own, which held NaN, and in place of the scores."""
    of = upstream(block)
    truth = gradients(block, of)
    for module in MODULES:
        out = torch.full_like(block.stored, torch.nan)
        module.write_gradients(out, block, of)
        assert relative_error(out, truth) < (4 + bound(block)) * EPS
        inside = block._replace(stored=block.stored.clone())
        module.write_gradients(inside.stored, inside, of)
        assert torch.equal(inside.stored, out)


@pytest.mark.parametrize("clip", [5.8, 9.1, 43.0, None])
@pytest.mark.parametrize("module", MODULES)
def test_gradients_of_negatives_have_no_bias(module, clip):
    """An error alike in all rows would not cancel against gradients of own products.

    Log-sums are alike here, too, and rounded with a clip where they are of its size. With these
    clips float32 rounds clip * log2(e) most.
    """
    block = Case(1, 256, 4, 256, 64, image_offset=-999).block(clip)
    block.stored.mul_(0.1)
    of, rows = upstream(block), torch.ones(256, 1)
    of = of._replace(weight=rows, penalty=torch.zeros(256))
    truth = gradients(block, of._replace(neg=sums(block)[1].t())).sum()
    out = torch.empty_like(block.stored)
    module.write_gradients(out, block, of._replace(neg=module.sums(block)[1].t()))
    assert abs(out.double().sum() / truth - 1.0) < (1 + (clip or 0.0) / 10) * EPS


@pytest.mark.parametrize("clip", [20.0, None])
def test_any_number_of_threads_gives_the_same_bits(clip):
    found = []
    for count in (1, 2, 5):
        torch.manual_seed(0)
        block = Case(2, 400, 25, 800, 90).block(clip)
        with torch_threads(count):
            results = compiled_blocks.sums(block)
            out = torch.empty_like(block.stored)
            compiled_blocks.write_gradients(out, block, upstream(block))
        found.append((*results, out))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, found[0], strict=True))


@pytest.mark.parametrize("value", [0.0, 1e-30, 88.0, -88.0, 200.0, -200.0, 1e30, -1e30, math.inf])
def test_scores_of_any_size(value):
    """All of them the same, up to both ends of the clip."""
    block = Case(2, 3, 2, 6, 4).block()
    block.stored.fill_(value)
    own, neg, _ = compiled_blocks.sums(block)
    assert torch.equal(own, torch.full_like(own, value))
    expected = 20.0 * math.tanh(-value / 2.0) + math.log(6)
    assert (neg - expected).abs().max() < 1e-4
    of = upstream(block)._replace(neg=neg.t(), penalty=torch.zeros(6))
    out = torch.empty_like(block.stored)
    compiled_blocks.write_gradients(out, block, of)
    if math.isfinite(value):
        assert relative_error(out, gradients(block, of)) < 1e-5


@pytest.mark.parametrize("value", [0.0, 1e-30, 200.0, -200.0, 1e4, -1e4, 1e30, -1e30, -math.inf])
def test_unclipped_scores_of_any_size(value):
    """All of them the same; of infinite ones the sum is not finite."""
    block = Case(2, 3, 2, 6, 4).block(clip=None)
    block.stored.fill_(value)
    own, neg, _ = compiled_blocks.sums(block)
    assert torch.equal(own, torch.full_like(own, value))
    expected = torch.full_like(neg, value + math.log(6))
    torch.testing.assert_close(neg, expected, rtol=2 * EPS, atol=EPS)
    of = upstream(block)._replace(neg=neg.t(), penalty=torch.zeros(6))
    out = torch.empty_like(block.stored)
    compiled_blocks.write_gradients(out, block, of)
    if math.isfinite(value):
        assert relative_error(out, gradients(block, of)) < 1e-5
    block.stored.fill_(math.inf)
    assert not compiled_blocks.sums(block)[1].isfinite().any()


@pytest.mark.parametrize("order", [1, -1])
def test_largest_score_grows_or_comes_first(order):
    """From -1000 to 1000 and back, over parts: what was summed is scaled each time."""
    block = Case(1, 1, 8, 40, 3000, image_offset=-1).block(clip=None)
    block.stored.copy_(order * torch.linspace(-1000.0, 1000.0, 24_000)[:, None])
    neg, truth = compiled_blocks.sums(block)[1], sums(block)[1]
    assert relative_error(neg, truth) < 2 * EPS


def test_exponentials_over_their_whole_range():
    """``exp(score - neg)`` from 1 down to the smallest normal numbers, one score a row."""
    block = Case(1, 1, 1, 1000, 1, image_offset=5).block()
    block.stored.copy_(torch.linspace(-9.0, 9.0, 1000))
    same = upstream(block)._replace(penalty=torch.zeros(1000))
    out = torch.empty_like(block.stored)
    for shift in (0.0, 20.0, 45.0):
        of = same._replace(neg=same.neg + shift)
        compiled_blocks.write_gradients(out, block, of)
        truth = gradients(block, of)
        error = (out - truth).abs() / truth.abs().clamp_min(1e-36)
        # One rounding of exponents up to 2 clip, and to that and the shift.
        assert error.max() < (4 + 40 + 40 + shift) * EPS


@pytest.mark.parametrize("clip", [20.0, None])
@pytest.mark.parametrize("module", MODULES)
def test_nan_stays(module, clip):
    """In the sums and gradients of its row and in no other's."""
    block = Case(1, 8, 2, 8, 8).block(clip)
    of = upstream(block)
    block.stored[4, 5] = torch.nan
    _, neg, square = module.sums(block)
    out = torch.empty_like(block.stored)
    module.write_gradients(out, block, of)
    rows = torch.arange(8) == 5
    assert torch.equal(neg[0].isnan(), rows)
    assert torch.equal(square.isnan(), rows)
    assert out.isnan().nonzero().tolist() == [[4, 5]]


def shifted(block, images=1):
    return block._replace(first_image=block.first_image + images)


@pytest.mark.parametrize("clip", [20.0, None])
@pytest.mark.parametrize("module", MODULES)
def test_planted_errors_are_caught(module, clip):
    """Own images shifted by one, and a factor off by one in ten thousand."""
    block = Case(2, 7, 4, 14, 7).block(clip)
    own, neg, _ = sums(block)
    wrong = module.sums(shifted(block))
    assert not torch.equal(wrong[0].double(), own)
    assert (wrong[1] - neg).abs().max() > 1e-3
    of = upstream(block)
    truth = gradients(block, of)
    out = torch.empty_like(block.stored)
    for planted in (shifted(block), block._replace(stored=1.0001 * block.stored)):
        module.write_gradients(out, planted, of)
        assert relative_error(out, truth) > 24 * EPS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stored": torch.zeros(8, 5, dtype=torch.float64)}, "contiguous float32 that fit"),
        ({"stored": torch.zeros(5, 8).t()}, "contiguous float32 that fit"),
        ({"stored": torch.zeros(9, 5)}, "contiguous float32 that fit"),
        ({"own": torch.zeros(5)}, "must be matrices"),
        ({"own": torch.zeros(4, 2)}, "contiguous float32 that fit"),
        ({"softmaxes": 3}, "1 or L softmaxes"),
        ({"sources": 0}, "of locations and sources"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"stored": torch.zeros(8, 5), "own": torch.zeros(5, 2), "softmaxes": 1, "sources": 5}
    stored, own, softmaxes, sources = (given | change).values()
    place = sources, 0, 0, 20.0
    neg, of_rows = torch.zeros(softmaxes, 5), torch.zeros(5)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.amdim_fast.score_sums_(neg, of_rows, own, stored, *place)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.amdim_fast.score_gradients_(
            torch.zeros(8, 5), stored, own, neg, neg, of_rows, *place
        )


@pytest.mark.parametrize(
    ("dtype", "clip", "built", "text"),
    [
        (torch.float32, 20.0, True, "elementwise work in C++"),
        (torch.bfloat16, 20.0, True, "elementwise work in C++"),
        (torch.float64, 20.0, True, "elementwise work by torch, since the scores are float64"),
        (torch.float32, None, True, "elementwise work in C++"),
        (
            torch.float32,
            50.0,
            True,
            "elementwise work by torch, since a clip of 50 takes a maximum",
        ),
        (
            *(torch.float32, 20.0, False),
            "elementwise work by torch, since the compiled library is not built",
        ),
    ],
)
def test_plan_says_what_ran(monkeypatch, dtype, clip, built, text):
    monkeypatch.setattr(compiled_blocks, "load_cpu", lambda: built)
    src, trg = torch.randn(6, 8, dtype=dtype), torch.randn(6, 3, 8, dtype=dtype)
    nce_loss(src, trg, clip=clip, memory_budget=2**20 + built, backend="torch")
    assert last_plan().kernels == (text,)
