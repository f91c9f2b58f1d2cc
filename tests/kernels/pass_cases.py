"""Passes of one pairing in the middle of a call, by the kernels and, in float64, by torch."""

from typing import NamedTuple

import torch
from torch import Tensor

from amdim_fast.nce import torch_passes, triton_passes
from amdim_fast.nce.pairing import Options, Pairing, Results, Upstream
from amdim_fast.nce.plan import PairingPlan
from amdim_fast.nce.way import PairingShape
from tests.nce.cases import DEVICE

# Places of the pairing in the call, none of which is that of another.
FIRST_SET, FIRST_OWN, BEHIND = 4, 7, 3
PARTS, WEIGHTS = 3, (0.7, 0.03)
PATTERNS = (
    ("objective",),
    ("totals",),
    ("log_prob",),
    ("loss",),
    ("mean_sq",),
    ("loss", "mean_sq"),
    ("log_prob", "mean_sq"),
)


class Case(NamedTuple):
    """Sizes and options of a pairing."""

    sets: int = 2
    images: int = 7
    targets: int = 7
    locations: int = 5
    width: int = 24
    offset: int = 0
    clip: float | None = 20.0
    same_location: bool = False
    dtype: torch.dtype = torch.float32
    scale: float = 2.0

    @property
    def rows(self):
        return self.sets * self.images

    @property
    def softmaxes(self):
        return self.locations if self.same_location else 1

    @property
    def first_sum(self):
        """With one log-sum a row, as many as rows come before."""
        return 11 if self.same_location else FIRST_SET * self.images


def make(case):
    """The pairing, and the same in float64."""
    src = case.scale * torch.randn(case.rows, case.width)
    trg = torch.randn(case.targets, case.locations, case.width)
    shape = PairingShape(case.sets, case.images, case.targets, case.locations, case.width)
    rest = (
        shape,
        PairingPlan("planted", 0, case.targets, 0, 0, 0, "planted"),
        Options(case.clip, case.same_location, False, PARTS, *WEIGHTS),
        *(FIRST_SET, FIRST_OWN, case.first_sum, case.offset),
    )
    inputs = [tensor.to(DEVICE, case.dtype) for tensor in (src, trg)]
    wide = [tensor.double() for tensor in inputs]
    return Pairing(*inputs, *rest), Pairing(*wide, *rest)


def make_results(case, dtype):
    """Results of a call, all NaN."""
    own = FIRST_OWN + case.rows * case.locations + BEHIND
    sums = case.first_sum + case.rows * case.softmaxes + BEHIND
    rows = (FIRST_SET + case.sets + 1) * case.images
    sizes = own, own, sums, rows, rows
    return Results(*(torch.full((s,), float("nan"), dtype=dtype, device=DEVICE) for s in sizes))


def make_upstream(case, pattern):
    """Gradients of the results of a call, and the same in float64."""
    if pattern == ("objective",):
        return [Upstream(of_objective=True)] * 2
    sets = FIRST_SET + case.sets + 1
    sizes = {
        "totals": PARTS + 1,
        "log_prob": FIRST_OWN + case.rows * case.locations + BEHIND,
        "loss": sets,
        "mean_sq": sets,
    }
    given = {name: torch.randn(sizes[name], device=DEVICE) for name in pattern}
    return Upstream(**given), Upstream(**{name: grad.double() for name, grad in given.items()})


def statistics(passes, pairing, case, chunk=10**6, dtype=torch.float32):
    """Results, from chunks of rows."""
    results = make_results(case, dtype)
    matrix = pairing.trg.reshape(-1, case.width)
    for first in range(0, case.rows, chunk):
        stored = passes.scores(pairing, first, min(chunk, case.rows - first), matrix)
        passes.statistics(pairing, results, stored, first)
    return results


def gradients(passes, pairing, case, results, upstream, *, chunk=10**6, block=10**6, **options):
    """[R, N * L] float64 gradients of the products, from chunks of rows and blocks of images."""
    matrix = pairing.trg.reshape(-1, case.width)
    parts = []
    for first in range(0, case.rows, chunk):
        row = []
        for start in range(0, case.targets, block):
            images = min(block, case.targets - start)
            columns = matrix[start * case.locations : (start + images) * case.locations]
            stored = passes.scores(pairing, first, min(chunk, case.rows - first), columns)
            place = {"first_row": first, "first_image": start, "images": images}
            row.append(
                undone(*passes.gradients(pairing, results, upstream, stored, **place, **options))
            )
        parts.append(torch.cat(row, dim=1))
    return torch.cat(parts)


def undone(grads, exponents):
    """Gradients without the power of two on each row."""
    grads = grads.double()
    return grads if exponents is None else grads * torch.exp2(-exponents.double())[:, None]


def fused(pairing, case, upstream, block=10**6):
    """Results and gradients by the kernels that multiply."""
    results = make_results(case, torch.float32)
    triton_passes.fused_statistics(pairing, results)
    prepared = triton_passes.row_gradients(pairing, results, upstream)
    parts = []
    for start in range(0, case.targets, block):
        trg = pairing.trg[start : start + block]
        grads = triton_passes.fused_gradients(pairing, results, prepared, trg, start)
        parts.append(undone(grads, prepared.exponents))
    return results, torch.cat(parts, dim=1)


def truth(wide, case, upstream):
    """Results and gradients by torch in float64."""
    results = statistics(torch_passes, wide, case, dtype=torch.float64)
    return results, gradients(torch_passes, wide, case, results, upstream, overwrite=False)


def tolerance(case):
    """Of log-probabilities: float32 roundings of scores as large as the clip, and of exponents."""
    largest = case.clip if case.clip is not None else 10.0 * case.scale
    return (8 + 4 * largest) * torch.finfo(torch.float32).eps


def check_results(found: Results, right: Results, case: Case) -> None:
    """What belongs to the pairing is right, and nothing else is written."""
    for name, value, true in zip(Results._fields, found, right, strict=True):
        assert torch.equal(value.isnan(), true.isnan()), name
        inside = ~true.isnan()
        size = true[inside].abs().clamp_min(1.0) if "row" not in name else true[inside].abs()
        error = (value[inside] - true[inside]).abs() / size
        assert error.max() <= tolerance(case), name


def check_gradients(found: Tensor, right: Tensor, case: Case) -> None:
    """Each to float32's accuracy of its row's largest, and to a rounding of its own type."""
    rounding = 0.0 if case.dtype == torch.float32 else torch.finfo(case.dtype).eps / 2
    largest = right.abs().amax(dim=1, keepdim=True)
    allowed = tolerance(case) * largest + rounding * right.abs()
    if case.dtype == torch.float16:
        allowed += largest * 2.0**-38  # a row's largest gradient is near 2**15
    assert ((found - right).abs() <= allowed).all()
