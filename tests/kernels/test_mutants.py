"""Planted errors in the text of the kernels are caught by the check the other tests use."""

import importlib
from pathlib import Path

import pytest
from amdim_fast.kernels import nce_tile_table

from amdim_fast.nce import tiles, triton_backend, triton_problem
from tests.nce.cases import budget_of, check, features, tile_set, upstream_like

KERNELS = Path(nce_tile_table.__file__).parent
NAMES = ("nce_clip", "nce_scores", "nce_forward", "nce_backward")

# name: (file, text, wrong text, way to the products, clip)
MUTANTS = {
    "forward keeps the own image": (
        *("nce_forward", "& (is_before | is_after)", "& (is_before | is_after | True)"),
        *("fused", 20.0),
    ),
    "forward masks one column too many": (
        *("nce_forward", "is_column = column < columns", "is_column = column < columns - 1"),
        *("fused", 20.0),
    ),
    "forward masks one column too few": (
        *("nce_forward", "is_column = column < columns", "is_column = column < columns + 1"),
        *("fused", 20.0),
    ),
    "own image off by one": (
        *("nce_forward", "own_start[:, None] + span", "own_start[:, None] + span - 1"),
        *("fused", 20.0),
    ),
    "wrong scale of the squares": (
        *("nce_forward", "raw = product * scale", "raw = product * scale * 1.001"),
        *("fused", 20.0),
    ),
    "strip left out": (
        *("nce_forward", "for strip in range(strips)", "for strip in range(strips - 1)"),
        *("fused", 20.0),
    ),
    "sums of earlier blocks lost": (
        *("nce_forward", "tl.store(totals + first, total, mask=is_row)", "pass"),
        *("elementwise", 20.0),
    ),
    "running maximum without its rescaling": (
        *("nce_forward", "total *= tl.exp2((maximum - shift) * LOG2_E)", "pass"),
        *("elementwise", 100.0),
    ),
    "maximum of another strip ignored": (
        *("nce_forward", "part * tl.exp2((other - shift) * LOG2_E)", "part"),
        *("elementwise", None),
    ),
    "product misses the last feature": (
        *("nce_scores", "is_feature = feature < width", "is_feature = feature < width - 1"),
        *("fused", 20.0),
    ),
    "descriptor of the next rows": (
        *("nce_scores", "src.load([first_row, start])", "src.load([first_row + 1, start])"),
        *("descriptors", 20.0),
    ),
    "descriptor eight features late": (
        *("nce_scores", "trg.load([first_column, start])", "trg.load([first_column, start + 8])"),
        *("descriptors", 20.0),
    ),
    "tiles of a band in the wrong order": (
        *("nce_scores", "within % size", "within % SWIZZLE_ROWS"),
        *("fused", 20.0),
    ),
    "own row of another set": (
        *("nce_scores", "set_index * source_images + image", "image"),
        *("fused", 20.0),
    ),
    "tanh of the wrong slope": (
        *("nce_clip", "size * (-2.0 * LOG2_E)", "size * (-2.001 * LOG2_E)"),
        *("elementwise", 100.0),
    ),
    "backward without the penalty": (
        *("nce_backward", "grad += tl.load(penalty + row_index)[:, None] * product", "pass"),
        *("elementwise", 20.0),
    ),
    "wrong derivative of the clip": (
        *("nce_clip", "4.0 * sigmoid * (1.0 - sigmoid)", "4.0 * sigmoid * sigmoid"),
        *("fused", 20.0),
    ),
    "wrong derivative of tanh": (
        *("nce_clip", "1.0 - ratio * ratio", "1.0 - ratio"),
        *("elementwise", 100.0),
    ),
    "probability on the wrong scale": (
        *("nce_clip", "(sigmoid - 0.5)", "(sigmoid - 0.4999)"),
        *("fused", 20.0),
    ),
    "backward treats the own image as a negative": (
        *("nce_backward", "tl.where(is_own, found[None, :], grad)", "grad"),
        *("fused", 20.0),
    ),
    "backward leaves a column out": (
        *("nce_backward", "column < grad_units * PRODUCT_UNIT", "column < columns - 1"),
        *("fused", 20.0),
    ),
}


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
    for attribute, module in (
        ("forward_kernels", "nce_forward"),
        ("backward_kernels", "nce_backward"),
    ):
        changed = importlib.import_module(f"{folder.name}_{module}")
        monkeypatch.setattr(triton_backend, attribute, changed)


def run(monkeypatch, way, clip):
    monkeypatch.setattr(tiles, "choose", lambda *_: tile_set(way))
    monkeypatch.setattr(triton_problem, "PROGRAMS_PER_PROCESSOR", 6)
    new_empty = triton_backend.torch.Tensor.new_empty
    monkeypatch.setattr(
        triton_backend.torch.Tensor,
        "new_empty",
        lambda *a, **o: new_empty(*a, **o).fill_(float("nan")),
    )
    # Three row tiles in bands of two, two strips of two tiles; tanh beyond its series.
    src, trg = features(20, 5, 24, sets=2, scale=40.0 if clip == 100.0 else 2.0)
    upstream = upstream_like(src, trg)
    check(src, trg, upstream, budgets=(budget_of(8, src, trg), None), clip=clip)


@pytest.mark.parametrize(
    ("way", "clip"),
    [("fused", 20.0), ("descriptors", 20.0), ("elementwise", 100.0), ("elementwise", None)],
)
def test_copies_without_an_error_pass(monkeypatch, tmp_path, way, clip):
    planted(monkeypatch, tmp_path, "nce_clip", "LOG2_E", "LOG2_E")
    run(monkeypatch, way, clip)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_errors_are_caught(monkeypatch, tmp_path, mutant):
    name, text, wrong, way, clip = MUTANTS[mutant]
    planted(monkeypatch, tmp_path, name, text, wrong)
    with pytest.raises(AssertionError):
        run(monkeypatch, way, clip)
