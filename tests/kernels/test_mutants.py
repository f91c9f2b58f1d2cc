"""Planted errors in the text of the kernels are caught by the checks the other tests use."""

import importlib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from amdim_fast.kernels import nce_tile_table

from amdim_fast import LossMultiNCE
from amdim_fast.nce import reference, triton_ends, triton_fused, triton_passes, triton_rows
from tests.kernels import pass_cases
from tests.kernels.cases import compare, fill_with_nan, plan_all, use
from tests.kernels.pass_cases import Case
from tests.nce.cases import DEVICE, features, relative_error

KERNELS = Path(nce_tile_table.__file__).parent
# Which module launches each, and by what name, where one does.
NAMES = {
    "nce_clip": None,
    "nce_scores": None,
    "nce_rows": (triton_rows, "kernels"),
    "nce_forward": (triton_fused, "nce_forward"),
    "nce_backward": (triton_fused, "nce_backward"),
    "nce_ends": (triton_ends, "nce_ends"),
}
HALF, FULL = torch.float16, torch.float32


class Fused(NamedTuple):
    """Kernels that multiply: three row tiles in bands of two, two strips of two tiles."""

    clip: float | None = 20.0
    way: str = "fused"
    dtype: torch.dtype = FULL

    def run(self, monkeypatch):
        use(monkeypatch, self.way, programs=6)
        plan_all(monkeypatch, "recompute", images=8)
        scale = 40.0 if self.clip == 100.0 else 2.0  # tanh beyond its series
        src, trg = features(20, 5, 24, sets=2, scale=scale, dtype=self.dtype)
        compare("log_prob", src, trg, clip=self.clip)


class Rows(NamedTuple):
    """Passes over products: chunks that end off the sets, an own image in two tiles."""

    kind: str = "log_prob"
    clip: float | None = 20.0
    negatives: str = "other_images"
    dtype: torch.dtype = FULL
    rows: int = 5

    def run(self, monkeypatch):
        use(monkeypatch, "elementwise")
        plan_all(monkeypatch, "one_pass", rows=self.rows)
        scale = 40.0 if self.clip == 100.0 else 2.0
        src, trg = features(7, 5, 24, sets=2, scale=scale, dtype=self.dtype)
        compare(self.kind, src, trg, clip=self.clip, negatives=self.negatives)


class Slice(NamedTuple):
    """Targets of one rank of several."""

    def run(self, monkeypatch):
        use(monkeypatch, "elementwise")
        case = Case(targets=4, offset=-2)
        pairing, wide = pass_cases.make(case)
        upstream, wide_upstream = pass_cases.make_upstream(case, ("log_prob", "mean_sq"))
        right, right_grads = pass_cases.truth(wide, case, wide_upstream)
        found = pass_cases.statistics(triton_passes, pairing, case)
        pass_cases.check_results(found, right, case)
        grads = pass_cases.gradients(triton_passes, pairing, case, found, upstream, overwrite=True)
        pass_cases.check_gradients(grads, right_grads, case)


class Multi(NamedTuple):
    """Several pairings, drawn sources and parts; the objective or weighted totals."""

    factor: float = 0.3
    weights: tuple[float, ...] | None = None

    def run(self, monkeypatch):
        use(monkeypatch, "elementwise")
        plan_all(monkeypatch, "keep" if self.weights else "one_pass", rows=4)
        maps = [torch.randn(3, 8, n, n, device=DEVICE).requires_grad_() for n in (1, 3, 2) * 2]
        locations = tuple(torch.tensor(place, device=DEVICE) for place in ([8, 1, 4], [2, 2, 5]))
        wide = [m.detach().double().requires_grad_() for m in maps]
        right = reference.multiscale_nce(tuple(wide[:3]), tuple(wide[3:]), locations)
        weights = self.weights or (self.factor,) * 4
        total = sum(w * part for w, part in zip(weights, right, strict=True))
        module = LossMultiNCE(backend="triton")
        if self.weights:
            losses = module(*maps, locations=locations)
            ours = sum(w * part for w, part in zip(weights, losses, strict=True))
        else:
            objective, *losses = module.objective(*maps, locations=locations)
            ours = self.factor * objective
        grads, true = torch.autograd.grad(ours, maps), torch.autograd.grad(total, wide)
        pairs = zip((ours, *losses, *grads), (total, *right, *true), strict=True)
        for value, expected in pairs:
            assert relative_error(value, expected) < 1e-5


class Untouched(NamedTuple):
    """Scaling by 1: arithmetic would turn signalling NaNs into quiet ones."""

    def run(self, monkeypatch):
        bits = torch.full((37,), 0x7F80_0001, dtype=torch.int32, device=DEVICE)
        grads = bits.clone().view(torch.float32)
        triton_passes.scale(grads, torch.tensor(1.0, device=DEVICE))
        assert torch.equal(grads.view(torch.int32), bits)


SAME = Rows(negatives="same_location")
# name: (file, text, wrong text, check)
MUTANTS = {
    "fused: keeps the own image": (
        *("nce_forward", "& (is_before | is_after)", "& (is_before | is_after | True)"),
        Fused(),
    ),
    "fused: one column too many masked": (
        *("nce_forward", "is_column = column < columns", "is_column = column < columns - 1"),
        Fused(),
    ),
    "fused: one column too few masked": (
        *("nce_forward", "is_column = column < columns", "is_column = column < columns + 1"),
        Fused(),
    ),
    "fused: own image off by one": (
        *("nce_forward", "own_start[:, None] + locations", "own_start[:, None] + locations - 1"),
        Fused(),
    ),
    "fused: wrong scale of the squares": (
        *("nce_forward", "raw = product * scale", "raw = product * scale * 1.001"),
        Fused(),
    ),
    "fused: strip left out": (
        *("nce_forward", "for strip in range(strips)", "for strip in range(strips - 1)"),
        Fused(),
    ),
    "fused: sums of strips lost": (
        *("nce_forward", "tl.store(totals + partial, total, mask=is_row)", "pass"),
        Fused(),
    ),
    "fused: running maximum without its rescaling": (
        *("nce_forward", "total *= tl.exp2((maximum - shift) * LOG2_E)", "pass"),
        Fused(100.0),
    ),
    "fused: maximum of another strip ignored": (
        *("nce_forward", "part * tl.exp2((other - shift) * LOG2_E)", "part"),
        Fused(None),
    ),
    "fused: product misses the last feature": (
        *("nce_scores", "is_feature = feature < width", "is_feature = feature < width - 1"),
        Fused(),
    ),
    "descriptor of the next rows": (
        *("nce_scores", "src.load([first_row, start])", "src.load([first_row + 1, start])"),
        Fused(way="descriptors"),
    ),
    "descriptor eight features late": (
        *("nce_scores", "trg.load([first_column, start])", "trg.load([first_column, start + 8])"),
        Fused(way="descriptors"),
    ),
    "tiles of a band in the wrong order": (
        *("nce_scores", "within % size", "within % SWIZZLE_ROWS"),
        Fused(),
    ),
    "own row of another set": (
        *("nce_scores", "set_index * source_images + image", "image"),
        Fused(),
    ),
    "tanh of the wrong slope": (
        *("nce_clip", "size * (-2.0 * LOG2_E)", "size * (-2.001 * LOG2_E)"),
        Rows(clip=100.0),
    ),
    "wrong derivative of the clip": (
        *("nce_clip", "4.0 * sigmoid * (1.0 - sigmoid)", "4.0 * sigmoid * sigmoid"),
        Fused(),
    ),
    "wrong derivative of tanh": (
        *("nce_clip", "1.0 - ratio * ratio", "1.0 - ratio"),
        Rows(clip=100.0),
    ),
    "probability on the wrong scale": (
        *("nce_clip", "(sigmoid - 0.5)", "(sigmoid - 0.4999)"),
        Fused(),
    ),
    "fused backward: no penalty": (
        *("nce_backward", "grad += tl.load(penalty + row_index)[:, None] * product", "pass"),
        Fused(),
    ),
    "fused backward: own image as a negative": (
        *("nce_backward", "tl.where(is_own, found[None, :], grad)", "grad"),
        Fused(),
    ),
    "fused backward: a column left out": (
        *("nce_backward", "column < grads_units * PRODUCT_UNIT", "column < columns - 1"),
        Fused(),
    ),
    "fused backward: sign of the weight": (
        *("nce_backward", "total = -tl.sum", "total = tl.sum"),
        Fused(),
    ),
    "fused backward: exponent not applied to the penalty": (
        *("nce_backward", "of_product *= tl.exp2(exponent)", "pass"),
        Fused(dtype=HALF),
    ),
    "rows: own columns not excluded": (
        *("nce_rows", "is_negative = is_column & (is_own == 0)", "is_negative = is_column"),
        Rows(),
    ),
    "rows: own columns of same locations not excluded": (
        *("nce_rows", "is_negative = is_column & (is_own == 0)", "is_negative = is_column"),
        SAME,
    ),
    "rows: padding counts": (
        *("nce_rows", "product = tl.where(is_column, product, 0.0)", "pass"),
        Rows(),
    ),
    "rows: no slope": (
        *("nce_rows", "grad = weight * probability * slope", "grad = weight * probability"),
        Rows(),
    ),
    "rows: no slope of own columns": (
        *("nce_rows", "of_log_prob * sigmoid * slope * factor", "of_log_prob * sigmoid * factor"),
        Rows(),
    ),
    "rows: no penalty": (*("nce_rows", "grad += penalty * product", "pass"), Rows()),
    "rows: own upstream ignored": (
        *("nce_rows", "upstream += tl.load(grad_log_prob", "0.0 * tl.load(grad_log_prob"),
        Rows(),
    ),
    "rows: upstream of the loss ignored": (
        *("nce_rows", "of_loss += tl.load(grad_loss + set_index)", "pass"),
        Rows("loss"),
    ),
    "rows: upstream applied twice": (
        *("nce_rows", "of_log_prob * sigmoid", "of_log_prob * of_log_prob * sigmoid"),
        Rows(),
    ),
    "rows: upstream of another set": (
        *("nce_rows", "tl.load(grad_loss + set_index)", "tl.load(grad_loss)"),
        Rows("loss"),
    ),
    "rows: total of another part": (
        *("nce_rows", "grad_totals + set_index % parts", "grad_totals"),
        Multi(weights=(1.0, 0.5, 2.0, 0.7)),
    ),
    "rows: sign of the weight": (
        *("nce_rows", "-tl.sum(tl.sum(of_own, axis=1), axis=0)", "tl.sum(tl.sum(of_own, axis=1))"),
        Rows(),
    ),
    "rows: largest instead of the sum": (
        *("nce_rows", "-tl.sum(tl.sum(of_own, axis=1), axis=0)", "-tl.max(tl.max(of_own, axis=1))"),
        Rows(),
    ),
    "rows: sign of the weight of a location": (
        *("nce_rows", "weight = -of_own if SAME_LOCATION", "weight = of_own if SAME_LOCATION"),
        SAME,
    ),
    "rows: first row of the chunk ignored": (
        *("nce_rows", "row = first_row + tl.program_id(0)", "row = tl.program_id(0)"),
        Rows("objective"),
    ),
    "rows: exponents of a chunk over those of another": (
        *("nce_rows", "tl.store(exponents + row,", "tl.store(exponents + tl.program_id(0),"),
        Rows("objective", dtype=HALF),
    ),
    "rows: power of two beyond float16": (
        *("nce_rows", "HALF_EXPONENT = tl.constexpr(15.0)", "HALF_EXPONENT = tl.constexpr(19.0)"),
        Rows(dtype=HALF),
    ),
    "rows: another power of two than is stored": (
        *("nce_rows", "power = tl.exp2(exponent)", "power = tl.exp2(exponent - 1.0)"),
        Rows(dtype=HALF),
    ),
    "rows: shares of the gradients swapped": (
        *("nce_rows", "-of_loss * own_share, of_square * square_share"),
        *("-of_loss * square_share, of_square * own_share", Rows("objective")),
    ),
    "rows: share of the squares": (
        *("nce_rows", "squares * square_share", "squares * own_share"),
        Rows("objective"),
    ),
    "rows: running maximum without its rescaling": (
        *("nce_rows", "total *= tl.exp2((maximum - shift) * LOG2_E)", "pass"),
        Rows(clip=None),
    ),
    "rows: one softmax for all locations": (
        *("nce_rows", "total = tl.sum(values, axis=0, keep_dims=True)"),
        *("total = tl.sum(values) + tl.sum(values, axis=0, keep_dims=True) * 0.0", SAME),
    ),
    "rows: own image on the wrong side of the slice": (
        *("nce_rows", "row % source_images + image_offset", "row % source_images - image_offset"),
        Slice(),
    ),
    "finish: gradient of drawn sources not added": (
        *("nce_ends", "found += tl.load(out", "tl.load(out"),
        Multi(),
    ),
    "finish: gradient of drawn sources added twice": (
        *("nce_ends", "found += tl.load(out", "found += found + tl.load(out"),
        Multi(),
    ),
    "finish: gradient of drawn sources lost": (
        *("nce_ends", "found += tl.load(out", "found = tl.load(out"),
        Multi(),
    ),
    "finish: location of another image": (
        *("nce_ends", "image * locations + tl.load(picks + image)"),
        *("image * locations + tl.load(picks)", Multi()),
    ),
    "stack: location of another image": (
        *("nce_ends", "tl.load(picks + image) * trg_location"),
        *("tl.load(picks) * trg_location", Multi()),
    ),
    "stack: another image": (*("nce_ends", "trg + image * trg_image", "trg"), Multi()),
    "sums: sets of another part": (
        *("nce_ends", "range(part, sets, parts)"),
        *("range(part * (sets // parts), (part + 1) * (sets // parts))", Multi()),
    ),
    "sums: no penalty in the objective": (
        *("nce_ends", "whole + mean_sq_weight * squares", "whole"),
        Multi(),
    ),
    "sums: one part in the objective": (
        *("nce_ends", "whole += loss_weight * part_loss", "whole = loss_weight * part_loss"),
        Multi(),
    ),
    "scale: nothing done": (*("nce_ends", "if factor != 1.0", "if factor != factor"), Multi()),
    "scale: done at 1": (*("nce_ends", "if factor != 1.0", "if factor == factor"), Untouched()),
}
CHECKS = list({repr(mutant[-1]): mutant[-1] for mutant in MUTANTS.values()}.values())


# Prepared launches of the kernels above.
PREPARED = [
    (triton_passes, "rows_launch"),
    *((triton_ends, f"_{name}_launch") for name in ("stack", "sums", "finish", "scale")),
]


@pytest.fixture(autouse=True)
def _nothing_prepared(monkeypatch):
    """A prepared launch keeps its kernel; planted ones are prepared anew."""
    for module, name in PREPARED:
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)


def planted(monkeypatch, folder, name, text, wrong):
    """Copies of the kernels with one text changed take the place of the kernels."""
    for other in NAMES:
        source = (KERNELS / f"{other}.py").read_text(encoding="utf-8")
        if other == name:
            assert source.count(text) >= 1, f"{name} no longer has {text!r}"
            source = source.replace(text, wrong)
        for module in NAMES:
            source = source.replace(f"amdim_fast.kernels.{module}", f"{folder.name}_{module}")
        (folder / f"{folder.name}_{other}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    for module, launched in NAMES.items():
        changed = importlib.import_module(f"{folder.name}_{module}")
        if launched is not None:
            monkeypatch.setattr(*launched, changed)


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_with_nan(monkeypatch)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_copies_without_an_error_pass(monkeypatch, tmp_path, check):
    planted(monkeypatch, tmp_path, "nce_clip", "LOG2_E", "LOG2_E")
    check.run(monkeypatch)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_errors_are_caught(monkeypatch, tmp_path, mutant):
    name, text, wrong, check = MUTANTS[mutant]
    planted(monkeypatch, tmp_path, name, text, wrong)
    with pytest.raises(AssertionError):
        check.run(monkeypatch)
